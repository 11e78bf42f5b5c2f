// What drafters propose, and what the loop lets through, over small alphabets completely.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "contract.hpp"
#include "error.hpp"
#include "key_values.hpp"
#include "lookup_sources.hpp"
#include "tenants.hpp"
#include "tree_drafter.hpp"

namespace specplug::native {
namespace {

// Calls back with every sequence of up to `longest` tokens below `vocab`, the empty one first.
void each_sequence(std::int64_t vocab, std::size_t longest,
                   const std::function<void(const Tokens&)>& call, const Tokens& begun = {}) {
  call(begun);
  if (begun.size() == longest) return;
  for (std::int64_t token = 0; token < vocab; ++token) {
    auto next = begun;
    next.push_back(token);
    each_sequence(vocab, longest, call, next);
  }
}

// A source that fails when it is asked for more, as a draft model may.
class Failing final : public Source {
 public:
  Place begin(const Tokens&) override { return Tokens(); }
  Place step(const Place& place, std::int64_t) override { return place; }
  std::vector<Guess> guesses(const Place&) override { fail(SPECPLUG_ERROR_ENGINE, "broken"); }
  double prior(Kind) const override { return 0.9; }
};

TEST(Failures, ASourceThatFailsIsLeftOutAndTheOthersGoOn) {
  Sources sources;
  sources.push_back(std::make_unique<Failing>());
  sources.push_back(predicted_source());
  TreeDrafter drafter(std::move(sources));
  const Tokens context{1, 2};
  for (int generation = 0; generation < 5; ++generation) {
    drafter.reset({nullptr, 1, {2, 3, 4}, ""});
    EXPECT_EQ(drafter.propose(context, {2, false}).tokens, (Tokens{3, 4}));
    EXPECT_EQ(drafter.propose(context, {2, false}).tokens, (Tokens{3, 4}));
    EXPECT_EQ(drafter.failures(), generation < 3 ? 1 : 0);
    EXPECT_EQ(drafter.failure(), generation < 3 ? "broken" : "");
  }
}

TEST(Cache, TakesNoMoreThanItHoldsAndForgets) {
  KeyValues cache({1, 1, 4, "float32"}, 1000);
  cache.make_room(10);
  auto* values = reinterpret_cast<float*>(cache.at(0, 1));
  std::fill_n(values, 10 * 4, 1.0F);
  cache.clear(9);
  EXPECT_EQ(values[9 * 4 - 1], 1.0F);
  EXPECT_EQ(values[9 * 4], 0.0F);
  cache.make_room(1000);
  EXPECT_EQ(reinterpret_cast<float*>(cache.at(0, 1))[9 * 4 - 1], 1.0F);
  EXPECT_THROW(cache.make_room(1001), Error);
}

TEST(Scores, AreNumbersOrHaveNoBest) {
  const auto never = -std::numeric_limits<float>::infinity();
  for (std::size_t count : {1, 31, 32, 33, 100}) {
    for (std::size_t place = 0; place < count; ++place) {
      std::vector<float> row(count, -1.0F);
      row[place] = 2;
      EXPECT_EQ(argmax(row.data(), count), static_cast<std::int64_t>(place));
      for (const float bad : {std::nanf(""), -never}) {
        row[place] = bad;
        EXPECT_EQ(argmax(row.data(), count), kNoToken);
      }
      row[place] = never;
      EXPECT_EQ(argmax(row.data(), count), count == 1 ? kNoToken : place == 0);
    }
    const std::vector<float> nothing(count, never);
    EXPECT_EQ(argmax(nothing.data(), count), kNoToken);
  }
}

TEST(Contract, ProposalsAreCutToTheBudget) {
  const Proposal tree{{5, 6, 7, 8, 9}, {-1, -1, 0, 1, 2}};
  const auto whole = within({5, true}, 10, tree);
  EXPECT_EQ(whole.tokens, tree.tokens);
  EXPECT_EQ(whole.parents, tree.parents);
  EXPECT_EQ(within({3, true}, 10, tree).tokens, (Tokens{5, 6, 7}));
  const auto chain = within({8, false}, 10, tree);
  EXPECT_EQ(chain.tokens, (Tokens{5, 7, 9}));
  EXPECT_FALSE(chain.branches());
  EXPECT_EQ(within({2, false}, 10, tree).tokens, (Tokens{5, 7}));
  EXPECT_EQ(within({2, false}, 10, {}).size(), 0U);
}

// The tokens with their parents that a budget leaves: a path of first continuations, or the first.
Proposal kept_of(const Proposal& proposal, const Budget& budget) {
  Proposal kept;
  std::int32_t last = -1;
  for (std::size_t node = 0; node < proposal.size() && kept.size() < budget.most; ++node) {
    if (!budget.branching && proposal.parents[node] != last) continue;
    last = static_cast<std::int32_t>(node);
    const auto place = static_cast<std::int32_t>(kept.size());
    kept.parents.push_back(budget.branching ? proposal.parents[node] : place - 1);
    kept.tokens.push_back(proposal.tokens[node]);
  }
  return kept;
}

bool possible(const Proposal& proposal) {
  for (std::size_t node = 0; node < proposal.size(); ++node) {
    if (proposal.tokens[node] < 0 || proposal.tokens[node] >= 3) return false;
    for (std::size_t other = 0; other < node; ++other) {
      if (proposal.parents[other] == proposal.parents[node] &&
          proposal.tokens[other] == proposal.tokens[node]) {
        return false;
      }
    }
  }
  return true;
}

TEST(Contract, WhateverIsProposedIsAWholeTreeOrRefused) {
  each_sequence(5, 3, [](const Tokens& tokens) {
    each_sequence(5, 3, [&](const Tokens& raw) {
      Proposal proposal;
      bool whole = tokens.size() == raw.size();
      for (std::size_t node = 0; node < raw.size(); ++node) {
        proposal.parents.push_back(static_cast<std::int32_t>(raw[node]) - 2);  // -2 to 2
        const auto parent = proposal.parents[node];
        whole = whole && parent >= -1 && parent < static_cast<std::int32_t>(node);
      }
      for (const auto token : tokens) proposal.tokens.push_back(token - 1);  // -1 to 3, of 0 to 2
      for (const bool branching : {false, true}) {
        for (const std::size_t most : {1, 2, 3}) {
          const Budget budget{most, branching};
          if (!whole || !possible(kept_of(proposal, budget))) {
            EXPECT_THROW(within(budget, 3, proposal), Error);
            continue;
          }
          const auto kept = within(budget, 3, proposal);
          EXPECT_EQ(kept.tokens, kept_of(proposal, budget).tokens);
          EXPECT_EQ(kept.parents, kept_of(proposal, budget).parents);
          if (!branching) EXPECT_FALSE(kept.branches());
        }
      }
    });
  });
}

// Every place that a source can be led to guesses tokens of its vocabulary, or nothing.
void walk(Source& source, const Place& place, std::size_t depth) {
  if (!place) return;
  for (const auto& guess : source.guesses(place)) {
    EXPECT_GE(guess.token, 0);
    EXPECT_LT(guess.token, 3);
  }
  if (!depth) return;
  for (std::int64_t token = 0; token < 3; ++token) walk(source, source.step(place, token), depth - 1);
}

TEST(Sources, AnyStepsAreTaken) {
  each_sequence(3, 4, [](const Tokens& context) {
    if (context.empty()) return;
    Sources sources;
    sources.push_back(ngram_source(1, 3));
    sources.push_back(suffix_source());
    sources.push_back(predicted_source());
    sources.push_back(recycle_source({}, 3));
    for (const auto& source : sources) {
      source->reset({nullptr, context.size() - 1, {1, 1, 2}, ""});
      walk(*source, source->begin(context), 3);
    }
  });
}

TEST(Sources, NgramGuessesWhatFollowedTheLatestOfTheLongestMatches) {
  each_sequence(3, 5, [](const Tokens& context) {
    if (context.empty()) return;
    const auto source = ngram_source(1, 9);
    const auto place = source->begin(context);
    Tokens wanted;
    for (std::size_t length = context.size() - 1; length && wanted.empty(); --length) {
      for (auto end = context.size() - 1; end >= length; --end) {
        if (!std::equal(context.end() - static_cast<std::ptrdiff_t>(length), context.end(),
                        context.begin() + static_cast<std::ptrdiff_t>(end - length))) {
          continue;
        }
        wanted.push_back(context[end]);
        break;
      }
    }
    ASSERT_EQ(place.has_value(), !wanted.empty());
    if (place) EXPECT_EQ(source->guesses(place).at(0).token, wanted[0]);
  });
}

TEST(TreeDrafter, MergedSourcesKeepToTheContract) {
  each_sequence(3, 5, [](const Tokens& context) {
    if (context.empty()) return;
    Sources sources;
    sources.push_back(ngram_source(1, 3));
    sources.push_back(suffix_source());
    sources.push_back(recycle_source({1, 2, 2, 0, 0, 1}, 3));
    TreeDrafter drafter(std::move(sources));
    drafter.reset({nullptr, context.size(), {}, ""});
    for (const bool branching : {false, true}) {
      const Budget budget{6, branching};
      const auto proposal = drafter.propose(context, budget);
      const auto kept = within(budget, 3, proposal);
      EXPECT_EQ(kept.tokens, proposal.tokens);
      EXPECT_EQ(kept.parents, proposal.parents);
    }
  });
}

// What a round of one token teaches.
void learn(Source& source, std::int64_t after, std::int64_t best) {
  std::vector<float> logits(3, 0.0F);
  logits[static_cast<std::size_t>(best)] = 1;
  Scores scores(logits.data(), 1, 3);
  source.commit({after, {}, {}, {best}, scores});
}

TEST(Tenants, WhatFollowedForOneIsNotGuessedForAnother) {
  auto source = recycle_source({}, 3);
  source->reset({nullptr, 1, {}, "a"});
  learn(*source, 1, 2);
  EXPECT_EQ(source->guesses(source->begin({1})).at(0).token, 2);
  source->reset({nullptr, 1, {}, "b"});
  EXPECT_TRUE(source->guesses(source->begin({1})).empty());
  for (int other = 0; other < 255; ++other) source->reset({nullptr, 1, {}, std::to_string(other)});
  source->reset({nullptr, 1, {}, "a"});  // whom the others made it forget
  EXPECT_TRUE(source->guesses(source->begin({1})).empty());
}

TEST(Tenants, ChancesAndCreditAreEachTenantsOwn) {
  const auto source = recycle_source({}, 3);
  Chances chances(*source);
  const double prior = chances.at(1);
  chances.begin("a");
  for (int round = 0; round < 50; ++round) chances.learn(1, true);
  chances.begin("b");
  EXPECT_EQ(chances.at(1), prior);
  chances.begin("a");
  EXPECT_GT(chances.at(1), prior + 0.3);

  const auto length = measured_length({{0, CallCosts({{1, 1.0}, {32, 32.0}})}});
  length->begin(1, "a");
  const auto first = length->budget(31, false);
  ASSERT_TRUE(first);
  for (int round = 0; round < 20; ++round) {  // nothing that is drafted comes true
    const auto budget = length->budget(31, false);
    const auto drafted = budget ? budget->most : 0;
    length->record(drafted, 1, 1.0 + static_cast<double>(drafted), 0);
  }
  EXPECT_FALSE(length->budget(31, false));
  length->begin(1, "b");
  const auto others = length->budget(31, false);
  ASSERT_TRUE(others);
  EXPECT_EQ(others->most, first->most);
  EXPECT_EQ(others->rate, first->rate);
}

TEST(Tenants, AllTogetherHaveSoManyEntries) {
  Tables<int, int> tables(100, 10);
  for (int tenant = 0; tenant < 10000; ++tenant) {
    const auto table = tables.of(std::to_string(tenant));
    for (int key = 0; key < 60; ++key) table->set(key) = tenant;
    EXPECT_EQ(table->size(), std::min(60, 100 / std::min(tenant + 1, 10)));
    EXPECT_EQ(table->find(0), table->size() < 60 ? nullptr : table->find(0));
    EXPECT_TRUE(table->find(59));
    EXPECT_LE(tables.size(), 10U);
  }
}

}  // namespace
}  // namespace specplug::native
