// Turns tokens into text one at a time, holding back what cannot be shown yet: bytes that are not
// yet a character, and what may be the beginning of a stop string.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer.hpp"

namespace specplug::native {

class TextStream {
 public:
  // tokenizer: null: there is no text. after: tokens that come before and are not shown; the first
  // that is pushed may complete their last character.
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop,
             const std::vector<std::int64_t>& after = {});

  // The text that a token completes; last: with whatever is still held back.
  std::string push(std::int64_t token, bool last);

  // What is still held back; for a token that ends the text, and has none of its own.
  std::string end() { return advance({}, true); }

  bool stopped() const { return stopped_; }  // whether a stop string was found

 private:
  std::string advance(std::string_view bytes, bool last);

  const Tokenizer* tokenizer_;
  std::vector<std::string> stop_;
  std::string bytes_;  // not yet characters
  std::string held_;   // perhaps the beginning of a stop string
  bool stopped_ = false;
};

}  // namespace specplug::native
