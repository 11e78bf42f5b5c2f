// Sources that find the context's end in a text: prompt and answer, earlier ones, an expected one.
#pragma once

#include <memory>

#include "history.hpp"
#include "source.hpp"

namespace specplug::native {

// What followed the latest of the longest earlier matches of the context's end, as in other tools.
std::unique_ptr<Source> ngram_source(std::size_t shortest, std::size_t longest);

// What followed the longest context that occurred before, in this text.
std::unique_ptr<Source> suffix_source();

// The same in the texts of earlier requests of the same tenant.
std::unique_ptr<Source> history_source(std::shared_ptr<History> history);

// The expected answer, found again after the answer left it.
std::unique_ptr<Source> predicted_source();

// The target's own choice after each token, the latest first; before a token was met, `warm`: the
// likeliest continuations of every token, vocab rows of as many, perhaps none (arXiv:2408.08696).
std::unique_ptr<Source> recycle_source(std::vector<std::int32_t> warm, std::size_t vocab);

}  // namespace specplug::native
