// How a run of tokens becomes engine calls: in pieces, and never narrower than is safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "engine.hpp"

namespace specplug::native {

constexpr std::size_t kPrefillWidth = 256;  // tokens a call; bounds the memory of activations

struct Cancelled {};  // thrown between the pieces of a long run

// Run one sequence's next tokens; see feed() in feeding.py. The scores' first `scored` rows are
// those of the last `scored` tokens; rows after them are padding.
//
// parents: if the last tokens are a tree, the index among them of the one before each; -1: the token
// before them all. cancelled: may be null.
Scores feed(Engine& engine, std::vector<std::int64_t> tokens, std::int64_t past, std::size_t scored,
            const std::vector<std::int32_t>* parents = nullptr,
            const std::atomic<bool>* cancelled = nullptr);

}  // namespace specplug::native
