// specplug.json, and tuning.json where the text begins with a 't'.
#include <cstdint>
#include <string_view>

#include "error.hpp"
#include "manifest.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace specplug::native;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    if (!text.empty() && text.front() == 't') {
      parse_tuning(text.substr(1), {"a processor, 2 cores", "onnxruntime", "cpu", {}, "fp32", ""});
    } else {
      parse_manifest(text).all_files();
    }
  } catch (const Error&) {  // said what is wrong
  }
  return 0;
}
