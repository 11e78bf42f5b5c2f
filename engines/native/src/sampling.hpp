// From a row of logits to the distribution that the next token is drawn from, as in Python and in
// its order: bias, penalties, bans; then temperature, top-k, top-p, min-p, typical-p.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "error.hpp"
#include "noise.hpp"

namespace specplug::native {

struct SamplingParams {
  double temperature = 0;
  std::int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double typical_p = 1;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::map<std::int64_t, double> logit_bias;
  std::int64_t no_repeat_ngram = 0;
  std::vector<std::int64_t> banned_tokens;
  std::map<std::int64_t, std::int64_t> forced_tokens;  // by position in the answer
  std::uint64_t seed = 0;
  std::uint64_t sample = 0;

  // Throws Error(INVALID_ARGUMENT), with the value and the range.
  void check(std::int64_t vocab_size) const;

  bool shapes_logits() const;
  // Whether the choice is the largest of the logits as they come.
  bool plain() const { return temperature == 0 && !shapes_logits(); }
};

using Tokens = std::vector<std::int64_t>;

// Bias, penalties, bans and forced tokens, in place: -inf for what cannot be.
// history: the tokens so far, drafts before this position included.
void shape_logits(std::vector<float>& logits, const SamplingParams& params, const Tokens& history,
                  std::size_t prompt_tokens);

// Of the next token; only tokens that it can be are listed.
struct Distribution {
  std::vector<double> weights;  // unnormalised
  Tokens tokens;                // ascending; not looked at if `all`
  bool all = true;              // entry i is token i

  std::int64_t token(std::size_t entry) const {
    return all ? static_cast<std::int64_t>(entry) : tokens[entry];
  }
};

// What temperature (above 0) and truncations make of logits. Throws Error(ENGINE): no token is left.
Distribution distribution(const std::vector<float>& logits, const SamplingParams& params);

// No token may come next.
class NothingLeft : public Error {
  using Error::Error;
};
[[noreturn]] void nothing_left(float largest);
// The model's scores are not numbers: no token may be chosen by them.
[[noreturn]] void no_numbers();

// The token that a distribution and noise choose: the argmax of weight / E, E exponential numbers.
std::int64_t race(const Distribution& found, Fractions noise);

// As numpy adds: in pairs of pairs, so that the last bit is the same.
double pairwise_sum(const double* values, std::size_t count);

}  // namespace specplug::native
