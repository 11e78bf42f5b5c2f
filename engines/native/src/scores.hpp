// The result of a call of an engine; valid until its next call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace specplug::native {

constexpr std::int64_t kNoToken = -1;

// Where the largest value is; of several the first. kNoToken: the values are not numbers, because
// one is NaN or infinite, or all are minus infinity.
std::int64_t argmax(const float* values, std::size_t count);

class Scores {
 public:
  Scores(const float* logits, std::size_t rows, std::size_t vocab)
      : logits_(logits), vocab_(vocab), best_(rows, kUnknown) {}

  std::size_t rows() const { return best_.size(); }
  std::size_t vocab() const { return vocab_; }
  const float* row(std::size_t which) const { return logits_ + which * vocab_; }

  // The likeliest token of a row, or kNoToken; computed once.
  std::int64_t best(std::size_t which) {
    if (best_[which] == kUnknown) best_[which] = argmax(row(which), vocab_);
    return best_[which];
  }

 private:
  static constexpr std::int64_t kUnknown = -2;

  const float* logits_;
  std::size_t vocab_;
  std::vector<std::int64_t> best_;
};

}  // namespace specplug::native
