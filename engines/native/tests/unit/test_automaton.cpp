// The suffix automaton and lookup against a search by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "history.hpp"
#include "suffix_automaton.hpp"

namespace specplug::native {
namespace {

TEST(SuffixAutomaton, CountsWhatFollowedTheLongestContext) {
  std::mt19937 random(1);
  for (int repeat = 0; repeat < 60; ++repeat) {
    std::vector<std::int64_t> text;
    SuffixAutomaton automaton;
    for (int i = 0; i < 60; ++i) {
      text.push_back(static_cast<std::int64_t>(random() % 3));
      automaton.extend(text.back());
      const auto end = automaton.end();
      // The longest suffix that occurred before, by trying them all.
      std::size_t longest = 0;
      for (std::size_t length = 1; length < text.size(); ++length) {
        const auto from = text.end() - static_cast<std::ptrdiff_t>(length);
        const auto found = std::search(text.begin(), text.end() - 1, from, text.end());
        if (found != text.end() - 1) longest = length;
      }
      EXPECT_EQ(end.matched, static_cast<std::int64_t>(longest));
      if (!longest) continue;
      std::map<std::int64_t, int> followed;
      for (std::size_t at = 0; at + longest < text.size(); ++at) {
        if (std::equal(text.end() - static_cast<std::ptrdiff_t>(longest), text.end(),
                       text.begin() + static_cast<std::ptrdiff_t>(at))) {
          ++followed[text[at + longest]];
        }
      }
      for (const auto& one : automaton.continuations(end)) {
        EXPECT_TRUE(followed.count(one.token));
      }
    }
  }
}

TEST(History, KeepsNoMoreThanItMay) {
  History history(100);
  for (int text = 0; text < 50; ++text) {
    history.add(text % 2 ? "a" : "b", std::vector<std::int64_t>(static_cast<std::size_t>(text), 1));
  }
  std::int64_t kept = 0;
  for (const auto* tenant : {"a", "b", "c"}) {
    for (const auto& text : history.texts(tenant)) kept += text->tokens();
  }
  EXPECT_GT(kept, 0);
  EXPECT_LE(kept, 100);
  History none(0);
  none.add("a", {1, 2, 3});
  EXPECT_TRUE(none.texts("a").empty());
}

}  // namespace
}  // namespace specplug::native
