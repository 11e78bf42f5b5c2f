// SHA-256 of files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace specplug::native {

class Sha256 {
 public:
  void update(const void* data, std::size_t bytes);
  std::string hexadecimal();  // of all that was given; ends it

 private:
  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> rest_{};
  std::size_t held_ = 0;
  std::uint64_t total_ = 0;
};

// Throws Error(BUNDLE) if the file cannot be read.
std::string file_sha256(const std::string& path);

}  // namespace specplug::native
