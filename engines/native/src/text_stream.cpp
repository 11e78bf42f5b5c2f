#include "text_stream.hpp"

#include <algorithm>

#include "unicode.hpp"

namespace specplug::native {
namespace {

// How many of the last bytes may become a character.
std::size_t begun(std::string_view bytes) {
  for (std::size_t length = 1; length <= std::min<std::size_t>(bytes.size(), 3); ++length) {
    const auto end = bytes.substr(bytes.size() - length);
    const auto first = static_cast<unsigned char>(end[0]);
    if (first < 0xC2 || first > 0xF4) continue;
    std::size_t place = 0;
    return next_character(end, place) == kNoCharacter && place == length ? length : 0;
  }
  return 0;
}

// How much of the end of a text is the beginning of a stop string.
std::size_t overlap(const std::string& text, const std::string& stop) {
  auto length = std::min(text.size(), stop.size() - 1);
  while (length && text.compare(text.size() - length, length, stop, 0, length) != 0) --length;
  return length;
}

}  // namespace

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop,
                       const std::vector<std::int64_t>& after)
    : tokenizer_(tokenizer), stop_(std::move(stop)) {
  if (!tokenizer) return;
  for (auto token = after.rbegin(); token != after.rend() && bytes_.size() < 4; ++token) {
    bytes_.insert(0, tokenizer->bytes(*token));
  }
  bytes_.erase(0, bytes_.size() - begun(bytes_));
}

std::string TextStream::push(std::int64_t token, bool last) {
  return tokenizer_ ? advance(tokenizer_->bytes(token), last) : "";
}

std::string TextStream::advance(std::string_view bytes, bool last) {
  bytes_ += bytes;
  const auto whole = bytes_.size() - (last ? 0 : begun(bytes_));
  auto text = repaired(std::string_view(bytes_).substr(0, whole));
  bytes_.erase(0, whole);
  text.insert(0, held_);
  held_.clear();
  if (stop_.empty()) return text;
  auto first_end = std::string::npos;  // of the stop string that comes to its end first
  auto first_at = std::string::npos;
  std::size_t longest = 0;
  for (const auto& stop : stop_) {
    const auto at = text.find(stop);
    if (at != std::string::npos && std::pair(at + stop.size(), at) < std::pair(first_end, first_at)) {
      first_end = at + stop.size();
      first_at = at;
    }
    longest = std::max(longest, overlap(text, stop));
  }
  if (first_at != std::string::npos) {
    stopped_ = true;
    return text.substr(0, first_at);
  }
  if (!last) {
    held_ = text.substr(text.size() - longest);
    text.resize(text.size() - longest);
  }
  return text;
}

}  // namespace specplug::native
