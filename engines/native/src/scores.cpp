#include "scores.hpp"

#include <algorithm>
#include <limits>

namespace specplug::native {

std::int64_t argmax(const float* values, std::size_t count) {
  // The largest first, in lanes that the compiler turns into vectors; then where it is.
  constexpr std::size_t lanes = 32;
  float most[lanes];
  std::fill_n(most, lanes, -std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      most[lane] = most[lane] < values[i + lane] ? values[i + lane] : most[lane];
    }
  }
  float largest = *std::max_element(most, most + lanes);
  for (; i < count; ++i) largest = largest < values[i] ? values[i] : largest;
  const auto* found = std::find(values, values + count, largest);
  return found == values + count ? 0 : found - values;  // none is as large as itself: all are NaN
}

}  // namespace specplug::native
