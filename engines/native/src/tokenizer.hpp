// Byte-level BPE as tokenizer.json describes it: Llama 3, SmolLM2, Qwen2 and their kin.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace specplug::native {

class Tokenizer {
 public:
  // json: the file's content. Throws Error(UNSUPPORTED) for another kind of tokenizer, naming what
  // is not known, and Error(BUNDLE) for a damaged file.
  explicit Tokenizer(std::string_view json);

  // special_tokens: with what the tokenizer puts around a text.
  std::vector<std::int64_t> encode(std::string_view text, bool special_tokens) const;

  // The bytes of a token; none for special tokens and ids that no token has.
  std::string_view bytes(std::int64_t token) const;

  std::string decode(const std::vector<std::int64_t>& tokens) const;

 private:
  std::vector<std::string> bytes_;  // by id
};

// Bytes with whatever is not UTF-8 replaced, a maximal part of a sequence by one U+FFFD.
std::string repaired(std::string_view bytes);

}  // namespace specplug::native
