#include "model_source.hpp"

#include <algorithm>
#include <cmath>

#include "clock.hpp"
#include "feeding.hpp"

namespace specplug::native {
namespace {

constexpr double kShares = 8;       // kinds of guesses, by the draft model's own probability
constexpr double kSmoothing = 0.2;  // of the measured seconds
constexpr std::size_t kShort = 4;   // tokens of a call whose time counts as that of a guess

// The probability of its likeliest token, in eighths.
Kind share(const float* logits, std::size_t count) {
  const float most = logits[argmax(logits, count)];
  double total = 0;
  for (std::size_t i = 0; i < count; ++i) total += std::exp(logits[i] - most);
  return static_cast<Kind>(kShares / total);
}

// A place is the drafted tokens since the context. The source only remembers which tokens its cache
// holds: rejected drafts need no undoing, since the next call names the length up to which cache
// and context agree.
class ModelSource final : public Source {
 public:
  explicit ModelSource(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}

  double seconds() const override { return seconds_; }
  double reading_seconds() const override { return reading_seconds_; }

  Place begin(const Tokens& context) override {
    context_ = &context;
    reading_seconds_ = 0;
    if (engine_->shares_cache()) {  // the target wrote all but the last token there
      cached_ = context.size() - 1;
      drafted_.clear();
    }
    return Tokens();
  }

  Place step(const Place& place, std::int64_t token) override {
    auto next = *place;
    next.push_back(token);
    return next;
  }

  // One guess; none where the draft model's context ends or does not know a token.
  std::vector<Guess> guesses(const Place& place) override {
    const auto end = context_->size();
    std::size_t past = std::min(cached_, end - 1);  // the last token is always fed
    Tokens history = *context_;
    history.insert(history.end(), place->begin(), place->end());
    if (cached_ == end && !place->empty()) {
      const auto most = std::min(drafted_.size(), place->size() - 1);
      past = end;
      while (past - end < most && drafted_[past - end] == (*place)[past - end]) ++past;
    }
    const Tokens pending(history.begin() + static_cast<std::ptrdiff_t>(past), history.end());
    if (*std::max_element(pending.begin(), pending.end()) >= engine_->graph().component().vocab_size ||
        static_cast<std::int64_t>(history.size()) > engine_->context_limit()) {
      return {};
    }
    try {
      return {guess(history, pending, past, place)};
    } catch (const NothingLeft&) {
      throw;
    } catch (...) {
      forget();
      throw;
    }
  }

  double prior(Kind kind) const override {  // the model's own probability, at a discount
    return kind == kAny ? 0.6 : 0.1 + 0.8 * static_cast<double>(kind) / kShares;
  }

  // Keep the cache entries of the drafted tokens that became text.
  void commit(const Outcome& outcome) override {
    const auto most = std::min(outcome.tokens.size(), drafted_.size());
    for (std::size_t i = 0; i < most && outcome.tokens[i] == drafted_[i]; ++i) ++cached_;
    drafted_.clear();
  }

  void reset(const Request& request) override {
    sampler_ = request.sampler;
    cached_ = 0;
    drafted_.clear();
  }

 private:
  Guess guess(const Tokens& history, const Tokens& pending, std::size_t past, const Place& place) {
    const double started = now();
    auto scores = feed(*engine_, pending, static_cast<std::int64_t>(past), 1);
    const auto token = sampler_->draft(scores, history);
    const auto kind = share(scores.row(0), scores.vocab());
    const double taken = now() - started;
    if (pending.size() > kShort) {
      reading_seconds_ += taken;
    } else {
      seconds_ = seconds_ > 0 ? seconds_ + kSmoothing * (taken - seconds_) : taken;
    }
    cached_ = context_->size();
    drafted_ = *place;
    return {token, kind};
  }

  // After a failure: entries that are not numbers would spoil whatever attends beside them.
  void forget() {
    const auto kept = engine_->shares_cache() ? context_->size() - 1 : 0;
    engine_->cache()->clear(static_cast<std::int64_t>(kept));
    cached_ = kept;
    drafted_.clear();
  }

  std::shared_ptr<Engine> engine_;
  Sampler* sampler_ = nullptr;
  const Tokens* context_ = nullptr;
  std::size_t cached_ = 0;  // entries of the cache that belong to the context
  Tokens drafted_;          // what the cache holds after them
  double seconds_ = 0;      // of a guess, as measured of late
  double reading_seconds_ = 0;
};

}  // namespace

std::unique_ptr<Source> model_source(std::shared_ptr<Engine> engine) {
  return std::make_unique<ModelSource>(std::move(engine));
}

}  // namespace specplug::native
