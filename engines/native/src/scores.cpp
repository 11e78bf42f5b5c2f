#include "scores.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace specplug::native {

std::int64_t argmax(const float* values, std::size_t count) {
  // The largest first, in lanes that the compiler turns into vectors; then where it is.
  constexpr std::size_t lanes = 32;
  float most[lanes];
  std::int32_t unordered[lanes] = {};  // whether there was a NaN
  std::fill_n(most, lanes, -std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      most[lane] = most[lane] < values[i + lane] ? values[i + lane] : most[lane];
      unordered[lane] |= static_cast<std::int32_t>(values[i + lane] != values[i + lane]);
    }
  }
  float largest = *std::max_element(most, most + lanes);
  bool numbers = std::none_of(unordered, unordered + lanes, [](auto any) { return any != 0; });
  for (; i < count; ++i) {
    largest = largest < values[i] ? values[i] : largest;
    numbers = numbers && !std::isnan(values[i]);
  }
  if (!numbers || !std::isfinite(largest)) return kNoToken;
  return std::find(values, values + count, largest) - values;
}

}  // namespace specplug::native
