// How a text is cut before pairs are merged. The expressions of GPT-2, Llama 3 and Qwen 2 are cut by
// hand, which is quicker; others by an interpreter.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "expression.hpp"
#include "json.hpp"

namespace specplug::native {

// Refuse a tokenizer that has what this library does not know: Error(UNSUPPORTED).
[[noreturn]] void not_built_in(std::string_view what);

// Refuse an object of a tokenizer.json that has a key which is not known, or one twice.
// object: its place in the file, such as "model"; "": the whole.
void check_keys(const Json& json, std::string_view object);

class Pretokenizer {
 public:
  // The file's "pre_tokenizer". Throws Error(UNSUPPORTED), naming what is not known.
  explicit Pretokenizer(const Json& json);

  // The pieces of a text, in UTF-8.
  std::vector<std::string> pieces(const std::u32string& text) const;

 private:
  enum class Cut { gpt2, llama, digits, prefix, expression };
  struct Step {
    Cut cut;
    std::size_t digits = 0;  // in a row at most; 0: any number
    std::shared_ptr<const Expression> expression = {};
    bool keeps_matches = true;  // whether pieces are what matches …
    bool keeps_rest = true;     // … and what is between matches
  };
  using Text = std::u32string_view;

  void add(const Json& json);
  void add_split(const Json& json);
  static std::vector<std::u32string> matched(Text text, const Step& step);
  static std::vector<std::u32string> cut(const std::u32string& text, const Step& step);
  static std::size_t gpt2(Text text);
  static std::size_t llama(Text text, std::size_t digits);

  std::vector<Step> steps_;
  bool bytes_ = false;  // ByteLevel, after which nothing may come, was there
};

}  // namespace specplug::native
