#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace specplug::native {

Sampler::Sampler(SamplingParams params, std::size_t vocab, std::size_t prompt_tokens, Tokens stop)
    : params_(std::move(params)),
      vocab_(vocab),
      prompt_tokens_(prompt_tokens),
      stop_(std::move(stop)) {}

std::int64_t Sampler::draft(Scores& scores, const Tokens& history) {
  const auto best = scores.best(0);
  if (best == kNoToken) no_numbers();
  if (params_.plain() && best < static_cast<std::int64_t>(vocab_)) return best;
  return choose(scores.row(0), std::min(scores.vocab(), vocab_), history);
}

Verdict Sampler::judge(Scores& scores, const Tokens& history, const Proposal& proposal) {
  Verdict verdict;
  Tokens tokens;
  // After an accepted token that ends the answer, whatever follows is not committed: rules of which
  // nothing is left there are no error.
  bool plain = params_.plain();
  bool ended = false;
  if (!plain) tokens = history;
  for (std::int64_t node = -1;;) {
    const auto row = static_cast<std::size_t>(node + 1);
    // No token can come of scores that are not numbers, but for one that is not committed.
    if (!ended && scores.best(row) == kNoToken) no_numbers();
    const auto own = plain ? scores.best(row) : choose(scores.row(row), scores.vocab(), tokens);
    auto next = node + 1;  // children come after their parent
    const auto size = static_cast<std::int64_t>(proposal.size());
    while (next < size && !(proposal.parents[static_cast<std::size_t>(next)] == node &&
                            proposal.tokens[static_cast<std::size_t>(next)] == own)) {
      ++next;
    }
    if (next == size) {
      verdict.bonus = own;
      return verdict;
    }
    verdict.path.push_back(next);
    tokens.push_back(own);
    ended = ended || std::find(stop_.begin(), stop_.end(), own) != stop_.end();
    plain = plain || ended;
    node = next;
  }
}

// The token that row, history and noise determine, whoever asks. count: of the row's values; the
// rest of the vocabulary cannot be.
std::int64_t Sampler::choose(const float* row, std::size_t count, const Tokens& history) {
  logits_.assign(row, row + count);
  logits_.resize(vocab_, -std::numeric_limits<float>::infinity());
  shape_logits(logits_, params_, history, prompt_tokens_);
  if (params_.temperature == 0) {
    const auto best = argmax(logits_.data(), logits_.size());
    if (best == kNoToken) nothing_left(*std::max_element(logits_.begin(), logits_.end()));
    return best;
  }
  const auto position = static_cast<std::uint64_t>(history.size());
  return race(distribution(logits_, params_), {params_.seed, params_.sample, position});
}

}  // namespace specplug::native
