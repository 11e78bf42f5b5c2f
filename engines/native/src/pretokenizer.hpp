// How a text is cut before pairs are merged: the expressions of GPT-2, Llama 3 and Qwen 2, by hand.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "json.hpp"

namespace specplug::native {

// Refuse a tokenizer that has what this library does not know: Error(UNSUPPORTED).
[[noreturn]] void not_built_in(std::string_view what);

class Pretokenizer {
 public:
  // The file's "pre_tokenizer". Throws Error(UNSUPPORTED), naming what is not known.
  explicit Pretokenizer(const Json& json);

  // The pieces of a text, in UTF-8.
  std::vector<std::string> pieces(const std::u32string& text) const;

 private:
  enum class Cut { gpt2, llama, digits, prefix };
  struct Step {
    Cut cut;
    std::size_t digits = 0;  // in a row at most; 0: any number
  };
  using Text = std::u32string_view;

  void add(const Json& json);
  static std::vector<std::u32string> cut(const std::u32string& text, const Step& step);
  static std::size_t gpt2(Text text);
  static std::size_t llama(Text text, std::size_t digits);

  std::vector<Step> steps_;
};

}  // namespace specplug::native
