// Who sees whom in a call: positions and masks, for graphs that take them as inputs.
#pragma once

#include <cstdint>
#include <vector>

namespace specplug::native {

class Visibility {
 public:
  // parents: of each token the one before it, -1: none; null: a chain.
  Visibility(std::int64_t past, std::size_t width, const std::int32_t* parents);

  // The position of every token in its sequence.
  void positions(std::int64_t* found) const;

  // What is added to the products of the tokens' queries with the cache's keys: 0, or -inf for what
  // a token does not see. It sees the entries before the call, its ancestors and itself; with a
  // window, those fewer than that many positions before its own. mask: [width, entries]
  void fill(float* mask, std::int64_t entries, std::int64_t window) const;

 private:
  std::int64_t past_;
  std::vector<std::int64_t> depths_;  // of each token, from its root
  const std::int32_t* parents_;
};

}  // namespace specplug::native
