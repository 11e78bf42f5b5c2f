#include "contract.hpp"

#include "error.hpp"

namespace specplug::native {
namespace {

template <typename... Parts>
[[noreturn]] void broken(const Parts&... parts) {
  fail(SPECPLUG_ERROR_INTERNAL, "a drafter broke its contract: ", parts...);
}

void check(const Proposal& proposal, std::int64_t vocab) {
  if (proposal.parents.size() != proposal.tokens.size()) {
    broken(proposal.tokens.size(), " tokens with ", proposal.parents.size(), " parents");
  }
  for (std::size_t node = 0; node < proposal.size(); ++node) {
    const auto token = proposal.tokens[node];
    const auto parent = proposal.parents[node];
    if (token < 0 || token >= vocab) {
      broken("token id ", token, " is not in [0, ", vocab, ")");
    }
    if (parent < -1 || parent >= static_cast<std::int64_t>(node)) {
      broken("the parent of token ", node, " is ", parent, ": it must be in [-1, ", node, ")");
    }
  }
}

}  // namespace

Proposal within(const Budget& budget, std::int64_t vocab, Proposal proposal) {
  check(proposal, vocab);
  if (!budget.branching && proposal.branches()) {
    Proposal chain;
    std::int32_t last = -1;
    for (std::size_t node = 0; node < proposal.size(); ++node) {
      if (proposal.parents[node] != last) continue;
      chain.parents.push_back(static_cast<std::int32_t>(chain.size()) - 1);
      chain.tokens.push_back(proposal.tokens[node]);
      last = static_cast<std::int32_t>(node);
    }
    proposal = std::move(chain);
  }
  if (proposal.size() > budget.most) {  // a parent comes before its children
    proposal.tokens.resize(budget.most);
    proposal.parents.resize(budget.most);
  }
  return proposal;
}

}  // namespace specplug::native
