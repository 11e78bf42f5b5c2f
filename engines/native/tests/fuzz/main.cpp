// Runs a fuzzing program over files in place of libFuzzer: each file, and each with a byte changed
// or its end cut off, at every fourth place.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int count, char** arguments) {
  long runs = 0;
  const auto run = [&](const std::string& input) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
    ++runs;
  };
  for (int i = 1; i < count; ++i) {
    for (const auto& file : std::filesystem::directory_iterator(arguments[i])) {
      std::ifstream stream(file.path(), std::ios::binary);
      const std::string input{std::istreambuf_iterator<char>(stream), {}};
      run(input);
      const std::size_t step = input.size() / 500 + 4;
      for (std::size_t at = 0; at < input.size(); at += step) {
        run(input.substr(0, at));
        auto changed = input;
        changed[at] = static_cast<char>(changed[at] ^ (1 << at / step % 8));
        run(changed);
      }
    }
  }
  std::printf("%ld inputs\n", runs);
  return runs == 0;
}
