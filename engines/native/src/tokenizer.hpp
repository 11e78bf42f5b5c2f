// Byte-level BPE as tokenizer.json describes it: Llama 3, SmolLM2, Qwen 2 and 3 and their kin.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "json.hpp"
#include "pretokenizer.hpp"

namespace specplug::native {

class Tokenizer {
 public:
  // json: the file's content. Throws Error(UNSUPPORTED) for another kind of tokenizer, naming what
  // is not known, and Error(BUNDLE) for a damaged file.
  explicit Tokenizer(std::string_view json);

  // special_tokens: with what the tokenizer puts around a text. Throws Error(INVALID_ARGUMENT) if
  // the text is not UTF-8.
  std::vector<std::int64_t> encode(std::string_view text, bool special_tokens) const;

  // The bytes of a token; none for special tokens and ids that no token has.
  std::string_view bytes(std::int64_t token) const;

  std::string decode(const std::vector<std::int64_t>& tokens) const;

 private:
  using Tokens = std::vector<std::int64_t>;
  struct Added {
    std::u32string content;
    std::int64_t id;
    bool normalized;
  };
  struct Merge {
    std::int64_t rank;
    std::int64_t made;
  };

  explicit Tokenizer(const Json& json);
  void read_model(const Json& model);
  void read_merges(const Json::Array& merges,
                   const std::unordered_map<std::string, std::int64_t>& vocabulary);
  void read_added(const Json& added);
  void read_template(const Json& processor);
  void set_bytes(std::int64_t id, const std::string& token, bool special);

  void encode_between(const std::u32string& text, bool normalized, Tokens& found) const;
  const Added* added_at(std::u32string_view text, bool normalized) const;
  void encode_piece(const std::string& piece, Tokens& found) const;

  Pretokenizer pretokenizer_;
  bool compose_ = false;        // the text is normalized to form C first
  bool ignore_merges_ = false;  // a piece that is a token is that token
  std::vector<std::string> bytes_;                          // by id
  std::unordered_map<std::string, std::int64_t> by_bytes_;  // of the model's vocabulary
  std::int64_t byte_ids_[256];  // negative: the vocabulary lacks the byte, and it is left out
  std::unordered_map<std::uint64_t, Merge> merges_;  // by the ids of a pair
  std::vector<Added> added_;                         // the longest first
  Tokens before_, after_;                            // what is put around a text
};

// Bytes with whatever is not UTF-8 replaced by U+FFFD.
std::string repaired(std::string_view bytes);

}  // namespace specplug::native
