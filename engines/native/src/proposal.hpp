// What a drafter proposes for one round, and what the acceptance rule makes of it.
#pragma once

#include <cstdint>
#include <vector>

namespace specplug::native {

// A tree of tokens, of which a chain is one. Siblings differ.
struct Proposal {
  std::vector<std::int64_t> tokens;
  std::vector<std::int32_t> parents;  // of a smaller index; -1: the last committed token

  std::size_t size() const { return tokens.size(); }
  bool branches() const {
    for (std::size_t node = 0; node < parents.size(); ++node) {
      if (parents[node] != static_cast<std::int32_t>(node) - 1) return true;
    }
    return false;
  }
};

struct Verdict {
  std::vector<std::int64_t> path;  // accepted tokens' indices
  std::int64_t bonus = 0;          // the target's own token after them

  bool straight() const {  // whether the accepted tokens are the first ones
    for (std::size_t place = 0; place < path.size(); ++place) {
      if (path[place] != static_cast<std::int64_t>(place)) return false;
    }
    return true;
  }
};

}  // namespace specplug::native
