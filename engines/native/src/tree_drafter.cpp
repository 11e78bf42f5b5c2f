#include "tree_drafter.hpp"

#include <algorithm>
#include <numeric>
#include <queue>

namespace specplug::native {
namespace {

constexpr double kSure = 0.9;  // chance of a guess that makes asking further sources a waste
constexpr std::int64_t kTreeRoot = -1;
constexpr double kLong = 1.0 / 400;  // forgetting per guess: of all requests …
constexpr double kShort = 1.0 / 24;  // … and of this one
constexpr double kLongWeight = 8.0;  // guesses that the prior, and the long run, are worth
constexpr double kShortWeight = 6.0;
constexpr std::int64_t kMostFailures = 3;  // of a source, after which it is asked no more

}  // namespace

double Chances::at(Kind kind) const {
  const auto* known = long_->find(kind);
  const auto count = known ? *known : Count();
  const double chance =
      (count.hits + kLongWeight * source_->prior(kind)) / (count.guesses + kLongWeight);
  const auto recent = short_.find(kind);
  if (recent == short_.end()) return chance;
  return (recent->second.hits + kShortWeight * chance) / (recent->second.guesses + kShortWeight);
}

void Chances::learn(Kind kind, bool came_true) {
  const auto note = [came_true](Count& count, double forgetting) {
    count.hits += (came_true ? 1.0 : 0.0) - forgetting * count.hits;
    count.guesses += 1 - forgetting * count.guesses;
  };
  note(long_->set(kind), kLong);
  note(short_[kind], kShort);
}

void Chances::begin(const std::string& tenant) {
  long_ = tenants_.of(tenant);
  short_.clear();
}

// One proposal in the making.
class Growing {
 public:
  Growing(TreeDrafter& drafter, const Budget& budget) : drafter_(drafter), budget_(budget) {}

  Proposal grow(const Tokens& context) {
    for (const auto& source : drafter_.sources_) places_[kTreeRoot].push_back(source->begin(context));
    ask(kTreeRoot, 1.0, 0);
    Proposal proposal;
    std::vector<double> reaches;
    while (!frontier_.empty()) {
      const auto next = frontier_.top();
      frontier_.pop();
      const auto node = proposal.size();
      if (!budget_.pays(node, next.reach)) break;
      proposal.tokens.push_back(next.token);
      proposal.parents.push_back(static_cast<std::int32_t>(next.parent));
      reaches.push_back(next.reach);
      if (node + 1 < budget_.most) {
        const auto number = static_cast<std::int64_t>(node);
        for (std::size_t which = 0; which < drafter_.sources_.size(); ++which) {
          const auto place = places_[next.parent][which];
          places_[number].push_back(
              place ? drafter_.sources_[which]->step(place, next.token) : std::nullopt);
        }
        ask(number, next.reach, node + 1);
      }
    }
    const auto size = budget_.size(reaches);
    proposal.tokens.resize(size);
    proposal.parents.resize(size);
    return proposal;
  }

 private:
  struct Candidate {
    double reach;
    std::int64_t age;
    std::int64_t parent;
    std::int64_t token;

    // Of a queue whose top is the largest: the likeliest, and of equal ones the oldest.
    bool operator<(const Candidate& other) const {
      return reach != other.reach ? reach < other.reach : age > other.age;
    }
  };
  struct Best {
    double chance;
    std::int64_t token;
  };

  // Put what may follow a node on the frontier.
  void ask(std::int64_t node, double reach, std::size_t drafted) {
    auto& asked = drafter_.asked_[node];
    std::vector<Best> best;  // of each token that is guessed, in the order of the first guesses
    double surest = 0;
    for (std::size_t which = 0; which < drafter_.sources_.size(); ++which) {
      auto& source = *drafter_.sources_[which];
      const auto& place = places_[node][which];
      const auto& chances = drafter_.chances_[which];
      if (!place || drafter_.off_[which]) continue;
      if (source.seconds() > 0 &&
          !budget_.pays(drafted, reach * (chances.at(kAny) - surest), source.seconds())) {
        continue;
      }
      auto guesses = drafter_.guesses_of(which, place);
      if (guesses.empty()) continue;
      for (const auto& guess : guesses) {
        const double chance = chances.at(guess.kind);
        const auto known = std::find_if(best.begin(), best.end(), [&](const Best& one) {
          return one.token == guess.token;
        });
        if (known != best.end() && chance <= known->chance) continue;
        if (known != best.end()) {
          known->chance = chance;
        } else {
          best.push_back({chance, guess.token});
        }
        surest = std::max(surest, chance);
      }
      asked.push_back({which, std::move(guesses)});
      if (surest > kSure) break;
    }
    if (best.empty()) return;
    std::stable_sort(best.begin(), best.end(),
                     [](const Best& a, const Best& b) { return a.chance > b.chance; });
    if (!budget_.branching) best.resize(1);
    double left = 1.0;
    for (const auto& one : best) {
      // Siblings exclude one another, which chances learnt apart do not know.
      frontier_.push({reach * std::min(one.chance, left), ++age_, node, one.token});
      left = std::max(left - one.chance, 0.05);
    }
  }

  TreeDrafter& drafter_;
  const Budget& budget_;
  std::map<std::int64_t, std::vector<Place>> places_;
  std::priority_queue<Candidate> frontier_;
  std::int64_t age_ = 0;
};

TreeDrafter::TreeDrafter(Sources sources)
    : sources_(std::move(sources)), failures_(sources_.size(), 0), off_(sources_.size(), false) {
  for (const auto& source : sources_) chances_.emplace_back(*source);
}

Proposal TreeDrafter::propose(const Tokens& context, const Budget& budget) {
  asked_.clear();
  if (empty()) return {};
  return Growing(*this, budget).grow(context);
}

std::vector<Guess> TreeDrafter::guesses_of(std::size_t which, const Place& place) {
  try {
    return sources_[which]->guesses(place);
  } catch (const NothingLeft&) {
    throw;
  } catch (const std::exception& error) {
    ++failures_[which];
    ++failed_;
    off_[which] = true;
    failure_ = error.what();
    return {};
  }
}

double TreeDrafter::reading_seconds() const {
  double total = 0;
  for (const auto& source : sources_) total += source->reading_seconds();
  return total;
}

// Learn from every guess at a node that was reached, drafted or not.
void TreeDrafter::commit(const Outcome& outcome) {
  std::int64_t node = kTreeRoot;
  for (std::size_t place = 0; place < outcome.tokens.size(); ++place) {
    if (place) node = outcome.verdict.path[place - 1];
    const auto asked = asked_.find(node);
    if (asked == asked_.end()) continue;
    for (const auto& [which, guesses] : asked->second) {
      auto& chances = chances_[which];
      for (const auto& guess : guesses) {
        chances.learn(guess.kind, guess.token == outcome.tokens[place]);
      }
      if (sources_[which]->seconds() > 0) {
        chances.learn(kAny, guesses.front().token == outcome.tokens[place]);
      }
    }
  }
  asked_.clear();
  for (const auto& source : sources_) source->commit(outcome);
}

void TreeDrafter::reset(const Request& request) {
  asked_.clear();
  for (auto& chances : chances_) chances.begin(request.tenant);
  failed_ = 0;
  failure_.clear();
  for (std::size_t which = 0; which < off_.size(); ++which) {
    off_[which] = failures_[which] >= kMostFailures;
  }
  for (const auto& source : sources_) source->reset(request);
}

void TreeDrafter::finish(const Request& request, const Tokens& tokens) {
  for (const auto& source : sources_) source->finish(request, tokens);
}

}  // namespace specplug::native
