#include "noise.hpp"

namespace specplug::native {
namespace {

__extension__ using Wide = unsigned __int128;

}  // namespace

std::array<std::uint64_t, 4> philox(std::array<std::uint64_t, 4> counter, std::uint64_t seed,
                                    std::uint64_t sample) {
  for (int round = 0; round < 10; ++round) {
    const Wide first = Wide{0xD2E7470EE14C6C93} * counter[0];
    const Wide second = Wide{0xCA5A826395121157} * counter[2];
    counter = {static_cast<std::uint64_t>(second >> 64) ^ counter[1] ^ seed,
               static_cast<std::uint64_t>(second),
               static_cast<std::uint64_t>(first >> 64) ^ counter[3] ^ sample,
               static_cast<std::uint64_t>(first)};
    seed += 0x9E3779B97F4A7C15;
    sample += 0xBB67AE8584CAA73B;
  }
  return counter;
}

}  // namespace specplug::native
