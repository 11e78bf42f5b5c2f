// Noise that is looked up: the same seed, position, purpose and token give the same number.
// docs/FORMAT.md has the layout; tests/golden/noise.json has numbers to compare with.
#pragma once

#include <array>
#include <cstdint>

namespace specplug::native {

// Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
std::array<std::uint64_t, 4> philox(std::array<std::uint64_t, 4> counter, std::uint64_t seed,
                                    std::uint64_t sample);

// The numbers in [0, 1) of one position, by token; cheapest asked in the order of tokens.
class Fractions {
 public:
  Fractions(std::uint64_t seed, std::uint64_t sample, std::uint64_t position)
      : seed_(seed), sample_(sample), position_(position) {}

  double operator[](std::int64_t token) {
    const auto number = static_cast<std::uint64_t>(token) / 4;
    if (number != number_) {  // four tokens share what is drawn at once
      constexpr std::uint64_t token_purpose = 0;
      words_ = philox({number, position_, token_purpose, 0}, seed_, sample_);
      number_ = number;
    }
    return static_cast<double>(words_[static_cast<std::uint64_t>(token) % 4] >> 11) * 0x1p-53;
  }

 private:
  std::uint64_t seed_;
  std::uint64_t sample_;
  std::uint64_t position_;
  std::uint64_t number_ = UINT64_MAX;
  std::array<std::uint64_t, 4> words_{};
};

}  // namespace specplug::native
