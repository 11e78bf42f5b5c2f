#include "noise.hpp"

#include <cmath>

namespace specplug::native {
namespace {

constexpr std::uint64_t kToken = 0;  // the purpose: the token at a position
__extension__ using Wide = unsigned __int128;

double exponential(std::uint64_t word) {
  const double fraction = static_cast<double>(word >> 11) * 0x1p-53;
  return -std::log(1.0 - fraction);
}

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

std::array<std::uint64_t, 4> Noise::block(std::uint64_t position, std::uint64_t number) const {
  return philox({number, position, kToken, 0}, seed_, sample_);
}

std::vector<double> Noise::exponentials(std::uint64_t position, std::size_t count) const {
  std::vector<double> found(count);
  for (std::size_t token = 0; token < count;) {
    for (const auto word : block(position, token / 4)) {
      if (token < count) found[token++] = exponential(word);
    }
  }
  return found;
}

std::vector<double> Noise::exponentials(std::uint64_t position,
                                        const std::vector<std::int64_t>& tokens) const {
  std::vector<double> found;
  found.reserve(tokens.size());
  std::uint64_t number = 0;
  std::array<std::uint64_t, 4> words = block(position, number);
  for (const auto signed_token : tokens) {
    const auto token = static_cast<std::uint64_t>(signed_token);
    if (token / 4 != number) words = block(position, number = token / 4);
    found.push_back(exponential(words[token % 4]));
  }
  return found;
}

}  // namespace specplug::native
