// Noise that is looked up: the same seed, position, purpose and token give the same number.
// docs/FORMAT.md has the layout; tests/golden/noise.json has numbers to compare with.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace specplug::native {

// Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
std::array<std::uint64_t, 4> philox(std::array<std::uint64_t, 4> counter, std::uint64_t seed,
                                    std::uint64_t sample);

class Noise {
 public:
  Noise(std::uint64_t seed, std::uint64_t sample) : seed_(seed), sample_(sample) {}

  // Standard exponential numbers for the token at a position, one for each of the tokens 0 … count-1.
  std::vector<double> exponentials(std::uint64_t position, std::size_t count) const;

  // The same, of some tokens only.
  std::vector<double> exponentials(std::uint64_t position,
                                   const std::vector<std::int64_t>& tokens) const;

 private:
  std::array<std::uint64_t, 4> block(std::uint64_t position, std::uint64_t number) const;

  std::uint64_t seed_;
  std::uint64_t sample_;
};

}  // namespace specplug::native
