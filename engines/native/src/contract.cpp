#include "contract.hpp"

#include <set>
#include <utility>

#include "error.hpp"

namespace specplug::native {
namespace {

template <typename... Parts>
[[noreturn]] void broken(const Parts&... parts) {
  fail(SPECPLUG_ERROR_INTERNAL, "a drafter broke its contract: ", parts...);
}

void check_parents(const Proposal& proposal) {
  if (proposal.parents.size() != proposal.tokens.size()) {
    broken(proposal.tokens.size(), " tokens with ", proposal.parents.size(), " parents");
  }
  for (std::size_t node = 0; node < proposal.size(); ++node) {
    const auto parent = proposal.parents[node];
    if (parent < -1 || parent >= static_cast<std::int64_t>(node)) {
      broken("the parent of token ", node, " is ", parent, ": it must be in [-1, ", node, ")");
    }
  }
}

void check_tokens(const Proposal& proposal, std::int64_t vocab) {
  std::set<std::pair<std::int32_t, std::int64_t>> seen;
  for (std::size_t node = 0; node < proposal.size(); ++node) {
    const auto token = proposal.tokens[node];
    const auto parent = proposal.parents[node];
    if (token < 0 || token >= vocab) {
      broken("token id ", token, " is not in [0, ", vocab, ")");
    }
    if (!seen.emplace(parent, token).second) {
      broken("token id ", token, " follows token ", parent, " twice");
    }
  }
}

}  // namespace

Proposal within(const Budget& budget, std::int64_t vocab, Proposal proposal) {
  check_parents(proposal);
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
  check_tokens(proposal, vocab);
  return proposal;
}

}  // namespace specplug::native
