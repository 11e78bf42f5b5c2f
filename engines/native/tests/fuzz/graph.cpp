// An .onnx file, as far as it is read before ONNX Runtime sees it.
#include <cstdint>
#include <string_view>

#include "error.hpp"
#include "graph_check.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace specplug::native;
  try {
    read_references({reinterpret_cast<const char*>(data), size});
  } catch (const Error&) {  // said what is wrong
  }
  return 0;
}
