// The choice of tokens in one generation: how a row becomes a token, and a proposal a verdict.
#pragma once

#include "proposal.hpp"
#include "sampling.hpp"
#include "scores.hpp"

namespace specplug::native {

// Target and draft of one generation choose through the same sampler.
class Sampler {
 public:
  // stop: tokens that end the answer.
  Sampler(SamplingParams params, std::size_t vocab, std::size_t prompt_tokens,
          Tokens stop = {});

  std::size_t vocab() const { return vocab_; }

  // The next drafted token, by the draft model's first row. history: committed and drafted tokens.
  std::int64_t draft(Scores& scores, const Tokens& history);

  // Drafts are accepted for as long as they are what the target itself chooses. scores: at the last
  // committed token and after each drafted one; history: the committed tokens.
  Verdict judge(Scores& scores, const Tokens& history, const Proposal& proposal);

 private:
  std::int64_t choose(const float* row, std::size_t count, const Tokens& history);

  SamplingParams params_;
  std::size_t vocab_;
  std::size_t prompt_tokens_;
  Tokens stop_;
  std::vector<float> logits_;
};

}  // namespace specplug::native
