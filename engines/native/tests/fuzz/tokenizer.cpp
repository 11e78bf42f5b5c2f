// tokenizer.json, and a text for it after a zero byte.
#include <cstdint>
#include <string_view>

#include "error.hpp"
#include "text_stream.hpp"
#include "tokenizer.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace specplug::native;
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const auto end = std::min(all.find('\0'), all.size());
  const auto text = all.substr(std::min(end + 1, all.size()));
  try {
    const Tokenizer tokenizer(all.substr(0, end));
    const auto ids = tokenizer.encode(repaired(text), true);
    TextStream stream(&tokenizer, {"stop", "\n"});
    for (const auto id : ids) stream.push(id, false);
    tokenizer.decode(ids);
  } catch (const Error&) {  // said what is wrong
  }
  return 0;
}
