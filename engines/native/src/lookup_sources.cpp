#include "lookup_sources.hpp"

#include <algorithm>
#include <iterator>

#include "tenants.hpp"

namespace specplug::native {
namespace {

// How many binary digits a length has, at most `most`.
Kind digits_of(std::int64_t length, Kind most) {
  Kind digits = 0;
  for (; length; length >>= 1) ++digits;
  return std::min(digits, most);
}

struct Matches {
  std::vector<std::int64_t> ends;  // where they end in the text, ascending
  std::size_t length = 0;
};

// The longest suffix of a context (its last `context` tokens) in the first `size` of a text.
Matches longest_matches(const Tokens& text, std::size_t size, const std::int64_t* context,
                        std::size_t count, std::size_t longest) {
  Matches found;
  const auto* last = context + count - 1;
  for (std::size_t end = 0; end < size; ++end) {
    if (text[end] == *last) found.ends.push_back(static_cast<std::int64_t>(end));
  }
  found.length = found.ends.empty() ? 0 : 1;
  while (found.length && found.length < std::min(longest, count)) {
    std::vector<std::int64_t> longer;
    const auto back = static_cast<std::int64_t>(found.length);
    for (const auto end : found.ends) {
      if (end >= back && text[static_cast<std::size_t>(end - back)] == last[-back]) {
        longer.push_back(end);
      }
    }
    if (longer.empty()) break;
    found.ends = std::move(longer);
    ++found.length;
  }
  return found;
}

// A place is the index of the guessed token, and the length of the match before the draft.
class NgramSource final : public Source {
 public:
  NgramSource(std::size_t shortest, std::size_t longest)
      : shortest_(shortest), longest_(longest) {}

  Place begin(const Tokens& context) override {
    context_ = &context;
    const auto found = longest_matches(context, context.size() - 1, context.data(), context.size(),
                                       longest_);
    if (found.length < shortest_) return std::nullopt;
    return std::vector{found.ends.back() + 1, static_cast<std::int64_t>(found.length)};
  }

  Place step(const Place& place, std::int64_t token) override {
    const auto index = (*place)[0];
    if (!inside(index) || (*context_)[static_cast<std::size_t>(index)] != token) return std::nullopt;
    return std::vector{index + 1, (*place)[1]};
  }

  std::vector<Guess> guesses(const Place& place) override {
    const auto index = (*place)[0];
    if (!inside(index)) return {};
    return {{(*context_)[static_cast<std::size_t>(index)], digits_of((*place)[1], INT64_MAX)}};
  }

  double prior(Kind kind) const override {
    constexpr double priors[] = {0.2, 0.35, 0.5, 0.65, 0.8};
    return priors[std::min<Kind>(kind, std::size(priors)) - 1];
  }

 private:
  bool inside(std::int64_t index) const {
    return index < static_cast<std::int64_t>(context_->size());
  }

  std::size_t shortest_;
  std::size_t longest_;
  const Tokens* context_ = nullptr;
};

constexpr std::size_t kMostGuesses = 3;

Kind octave(std::int64_t length) {  // 0 for one token, 1 for two, 2 for three and four, …
  return digits_of(length - 1, 5);
}

// The likeliest continuations of a place; their kind is of rank, share, length and times.
std::vector<Guess> suffix_guesses(const SuffixAutomaton& text, SuffixAutomaton::Place place) {
  std::vector<Guess> guesses;
  Kind rank = 0;
  for (const auto& one : text.continuations(place)) {
    if (guesses.size() == kMostGuesses) break;
    const Kind quarters = 4 * one.times / one.total;
    const Kind kind = ((rank++ * 5 + quarters) * 6 + octave(one.length)) * 4 +
                      std::min<std::int64_t>(one.total, 3);
    guesses.push_back({one.token, kind});
  }
  return guesses;
}

double suffix_prior(Kind kind) {
  const auto length = static_cast<double>(kind / 4 % 6);
  const auto quarters = static_cast<double>(kind / 24 % 5);
  return std::min(0.15 + 0.17 * length, 0.9) * (quarters + 0.5) / 4.5;
}

SuffixAutomaton::Place unpacked(const std::vector<std::int64_t>& place, std::size_t which) {
  return {static_cast<std::int32_t>(place[2 * which]), place[2 * which + 1]};
}

std::vector<std::int64_t> packed(SuffixAutomaton::Place place) {
  return {place.state, place.matched};
}

class SuffixSource final : public Source {
 public:
  Place begin(const Tokens& context) override {
    while (text_.tokens() < static_cast<std::int64_t>(context.size())) {
      text_.extend(context[static_cast<std::size_t>(text_.tokens())]);
    }
    return packed(text_.end());
  }
  Place step(const Place& place, std::int64_t token) override {
    return packed(text_.step(unpacked(*place, 0), token));
  }
  std::vector<Guess> guesses(const Place& place) override {
    return suffix_guesses(text_, unpacked(*place, 0));
  }
  double prior(Kind kind) const override { return suffix_prior(kind); }
  void reset(const Request&) override { text_ = SuffixAutomaton(); }

 private:
  SuffixAutomaton text_;
};

// A place is that of each text.
class HistorySource final : public Source {
 public:
  explicit HistorySource(std::shared_ptr<History> history) : history_(std::move(history)) {}

  Place begin(const Tokens& context) override {
    if (texts_.empty()) return std::nullopt;
    for (; read_ < context.size(); ++read_) places_ = step(places_, context[read_]);
    return places_;
  }

  Place step(const Place& place, std::int64_t token) override {
    const std::lock_guard held(history_->lock());
    std::vector<std::int64_t> next;
    for (std::size_t which = 0; which < texts_.size(); ++which) {
      const auto reached = texts_[which]->step(unpacked(*place, which), token);
      next.insert(next.end(), {reached.state, reached.matched});
    }
    return next;
  }

  std::vector<Guess> guesses(const Place& place) override {
    std::size_t longest = 0;
    for (std::size_t which = 1; which < texts_.size(); ++which) {
      if (unpacked(*place, which).matched > unpacked(*place, longest).matched) longest = which;
    }
    if (unpacked(*place, longest).matched < kShortest) return {};
    const std::lock_guard held(history_->lock());
    auto found = suffix_guesses(*texts_[longest], unpacked(*place, longest));
    const auto is_end = [](const Guess& guess) { return guess.token < 0; };  // of a text
    found.erase(std::remove_if(found.begin(), found.end(), is_end), found.end());
    return found;
  }

  double prior(Kind kind) const override { return 0.8 * suffix_prior(kind); }

  void reset(const Request& request) override {
    read_ = 0;
    texts_ = history_->texts(request.tenant);
    places_ = std::vector<std::int64_t>(2 * texts_.size(), 0);
  }

  void finish(const Request& request, const Tokens& tokens) override {
    history_->add(request.tenant, tokens);
  }

 private:
  static constexpr std::int64_t kShortest = 2;  // tokens of a match in other texts

  std::shared_ptr<History> history_;
  std::vector<History::Text> texts_;
  Place places_;
  std::size_t read_ = 0;
};

// A place is the index of the expected token, and how many before it came true in a row; -1: the
// answer left the expected text.
class PredictedSource final : public Source {
 public:
  Place begin(const Tokens& context) override {
    if (expected_.empty()) return std::nullopt;
    for (; read_ < context.size(); ++read_) {
      const auto index = place_[0];
      place_ = step(place_, context[read_]).value_or(std::vector<std::int64_t>{index, -1});
    }
    if (place_[1] < 0 && !align(context)) return std::nullopt;
    return place_;
  }

  Place step(const Place& place, std::int64_t token) override {
    const auto index = (*place)[0];
    const auto right = (*place)[1];
    if (right < 0 || !inside(index) || expected_[static_cast<std::size_t>(index)] != token) {
      return std::nullopt;
    }
    return std::vector{index + 1, right + 1};
  }

  std::vector<Guess> guesses(const Place& place) override {
    const auto index = (*place)[0];
    if (!inside(index)) return {};
    return {{expected_[static_cast<std::size_t>(index)], digits_of((*place)[1], INT64_MAX)}};
  }

  double prior(Kind kind) const override {
    constexpr double priors[] = {0.4, 0.35, 0.6, 0.8, 0.9, 0.95};
    return priors[std::min<Kind>(kind, std::size(priors) - 1)];
  }

  void reset(const Request& request) override {
    expected_ = request.prediction;
    prompt_tokens_ = read_ = request.prompt_tokens;
    place_ = {0, 0};
  }

 private:
  static constexpr std::size_t kLongest = 12;  // tokens of a match that is sought

  bool inside(std::int64_t index) const {
    return index < static_cast<std::int64_t>(expected_.size());
  }

  // Where the longest match of the answer's end ends; of several the nearest after the parting.
  bool align(const Tokens& context) {
    if (context.size() == prompt_tokens_) return false;
    const auto found =
        longest_matches(expected_, expected_.size() - 1, context.data() + prompt_tokens_,
                        context.size() - prompt_tokens_, kLongest);
    if (!found.length) return false;
    const auto ahead = std::lower_bound(found.ends.begin(), found.ends.end(), place_[0]);
    const auto end = ahead == found.ends.end() ? found.ends.back() : *ahead;
    place_ = {end + 1, static_cast<std::int64_t>(found.length)};
    return true;
  }

  Tokens expected_;
  std::size_t prompt_tokens_ = 0;
  std::size_t read_ = 0;
  std::vector<std::int64_t> place_{0, 0};
};

// A place is a token. The table outlives a request, and is the tenant's own.
class RecycleSource final : public Source {
 public:
  RecycleSource(std::vector<std::int32_t> warm, std::size_t vocab)
      : warm_(std::move(warm)), warm_width_(warm_.size() / vocab) {}

  Place begin(const Tokens& context) override { return std::vector{context.back()}; }
  Place step(const Place&, std::int64_t token) override { return std::vector{token}; }

  std::vector<Guess> guesses(const Place& place) override {
    const auto token = (*place)[0];
    std::vector<Guess> found;
    if (const auto* known = met_->find(token)) {
      for (const auto choice : known->choices) {
        found.push_back({choice, kind_of(found.size(), std::min(known->times, kTwice))});
      }
    }
    const auto row = static_cast<std::size_t>(token) * warm_width_;
    const auto seen = found.size();
    for (auto i = row; i < row + warm_width_ && found.size() < kKept; ++i) {
      const auto same = [&](const Guess& guess) { return guess.token == warm_[i]; };
      const auto end = found.begin() + static_cast<std::ptrdiff_t>(seen);
      if (warm_[i] >= 0 && std::none_of(found.begin(), end, same)) {
        found.push_back({warm_[i], kind_of(found.size(), 0)});
      }
    }
    return found;
  }

  double prior(Kind kind) const override {  // a guess in four, about, if it was met
    constexpr double priors[] = {0.3, 0.12, 0.07, 0.05};
    return priors[kind / (kTwice + 1)] * (kind % (kTwice + 1) ? 1.0 : 0.5);
  }

  void reset(const Request& request) override { met_ = tables_.of(request.tenant); }

  // Note the target's choice after every token that it judged.
  void commit(const Outcome& outcome) override {
    for (std::size_t row = 0; row < outcome.scores.rows(); ++row) {
      if (row > outcome.proposal.size()) break;
      const auto choice = outcome.scores.best(row);
      if (choice == kNoToken) continue;
      auto& met = met_->set(row ? outcome.proposal.tokens[row - 1] : outcome.after);
      ++met.times;
      auto& choices = met.choices;
      choices.erase(std::remove(choices.begin(), choices.end(), choice), choices.end());
      choices.insert(choices.begin(), choice);
      if (choices.size() > kKept) choices.resize(kKept);
    }
  }

 private:
  // Whose continuations are kept, of all tenants together; one takes about 200 bytes.
  static constexpr std::size_t kMostTokens = std::size_t{1} << 17;
  static constexpr std::size_t kKept = 4;  // continuations of a token that are guessed
  static constexpr std::int64_t kTwice = 2;

  struct Met {
    std::vector<std::int64_t> choices;
    std::int64_t times = 0;
  };

  static Kind kind_of(std::size_t rank, std::int64_t times) {
    return static_cast<Kind>(rank) * (kTwice + 1) + times;
  }

  std::vector<std::int32_t> warm_;
  std::size_t warm_width_;
  Tables<std::int64_t, Met> tables_{kMostTokens};
  std::shared_ptr<Recent<std::int64_t, Met>> met_ =
      std::make_shared<Recent<std::int64_t, Met>>(kMostTokens);  // of nobody yet
};

}  // namespace

std::unique_ptr<Source> ngram_source(std::size_t shortest, std::size_t longest) {
  return std::make_unique<NgramSource>(shortest, longest);
}

std::unique_ptr<Source> suffix_source() { return std::make_unique<SuffixSource>(); }

std::unique_ptr<Source> history_source(std::shared_ptr<History> history) {
  return std::make_unique<HistorySource>(std::move(history));
}

std::unique_ptr<Source> predicted_source() { return std::make_unique<PredictedSource>(); }

std::unique_ptr<Source> recycle_source(std::vector<std::int32_t> warm, std::size_t vocab) {
  return std::make_unique<RecycleSource>(std::move(warm), vocab);
}

}  // namespace specplug::native
