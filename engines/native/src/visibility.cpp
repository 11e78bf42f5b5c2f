#include "visibility.hpp"

#include <algorithm>
#include <limits>

namespace specplug::native {

Visibility::Visibility(std::int64_t past, std::size_t width, const std::int32_t* parents)
    : past_(past), depths_(width), parents_(parents) {
  for (std::size_t node = 0; node < width; ++node) {
    if (!parents) {
      depths_[node] = static_cast<std::int64_t>(node);
    } else if (parents[node] >= 0) {
      depths_[node] = depths_[static_cast<std::size_t>(parents[node])] + 1;
    }
  }
}

void Visibility::positions(std::int64_t* found) const {
  for (const auto depth : depths_) *found++ = past_ + depth;
}

void Visibility::fill(float* mask, std::int64_t entries, std::int64_t window) const {
  constexpr float hidden = -std::numeric_limits<float>::infinity();
  for (std::size_t node = 0; node < depths_.size(); ++node, mask += entries) {
    std::fill_n(mask, entries, hidden);
    const auto position = past_ + depths_[node];
    const auto first = window ? std::max<std::int64_t>(position - window + 1, 0) : 0;
    for (auto entry = first; entry < past_; ++entry) mask[entry] = 0;
    for (auto above = static_cast<std::int64_t>(node); above >= 0;) {
      const auto at = static_cast<std::size_t>(above);
      if (past_ + depths_[at] >= first) mask[past_ + above] = 0;
      above = parents_ ? parents_[at] : above - 1;
    }
  }
}

}  // namespace specplug::native
