#include "text_stream.hpp"

#include <algorithm>

namespace specplug::native {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Whether the last bytes are no character, or not yet one.
bool unfinished(const std::string& text) {
  return text.size() >= kReplacement.size() &&
         text.compare(text.size() - kReplacement.size(), kReplacement.size(), kReplacement) == 0;
}

// How much of the end of a text is the beginning of a stop string.
std::size_t overlap(const std::string& text, const std::string& stop) {
  auto length = std::min(text.size(), stop.size() - 1);
  while (length && text.compare(text.size() - length, length, stop, 0, length) != 0) --length;
  return length;
}

}  // namespace

std::string TextStream::push(std::int64_t token, bool last) {
  if (!tokenizer_) return "";
  bytes_ += tokenizer_->bytes(token);
  auto text = repaired(bytes_);
  if (!last && unfinished(text)) return "";
  bytes_.clear();
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
