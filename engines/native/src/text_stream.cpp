#include "text_stream.hpp"

#include <algorithm>

namespace specplug::native {
namespace {

// How many of the last bytes are the beginning of a character.
std::size_t unfinished(const std::string& bytes) {
  const auto most = std::min<std::size_t>(bytes.size(), 3);
  for (std::size_t back = 1; back <= most; ++back) {
    const auto byte = static_cast<unsigned char>(bytes[bytes.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;  // one that goes on
    const std::size_t wanted = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    return wanted > back ? back : 0;
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

std::string TextStream::push(std::int64_t token, bool last) {
  if (!tokenizer_) return "";
  bytes_ += tokenizer_->bytes(token);
  const auto kept = last ? 0 : unfinished(bytes_);
  auto text = held_ + repaired(std::string_view(bytes_).substr(0, bytes_.size() - kept));
  bytes_.erase(0, bytes_.size() - kept);
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
