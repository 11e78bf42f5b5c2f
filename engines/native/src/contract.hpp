// What the loop makes sure of before it verifies a proposal, whichever drafter made it.
#pragma once

#include <cstdint>

#include "controller.hpp"
#include "proposal.hpp"

namespace specplug::native {

// A proposal cut to what a round may draft: to a chain, each token's first continuation, where the
// budget has no branches, and to the budget's number of tokens. Parents and what is left are checked.
// vocab: token ids are below it. Throws Error(INTERNAL), naming a token id or a parent that cannot be,
// or a token that follows another twice.
Proposal within(const Budget& budget, std::int64_t vocab, Proposal proposal);

}  // namespace specplug::native
