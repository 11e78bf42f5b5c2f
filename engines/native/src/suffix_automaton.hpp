// A suffix automaton that grows: which contexts occurred before, what followed them, how often.
#pragma once

#include <cstdint>
#include <vector>

namespace specplug::native {

// Blumer et al., "The smallest automaton recognizing the subwords of a text", 1985. A state stands
// for contexts that end at the same places of the text; its link leads to the longest shorter
// context that ends at more places.
class SuffixAutomaton {
 public:
  struct Place {
    std::int32_t state = 0;
    std::int64_t matched = 0;  // tokens of context that were matched to reach it
  };
  struct Continuation {
    std::int64_t token;
    std::int64_t times;   // that it followed
    std::int64_t total;   // of all that followed
    std::int64_t length;  // of the context
  };

  SuffixAutomaton() { add_state(0, -1, 0); }

  std::int64_t tokens() const { return tokens_; }
  void extend(std::int64_t token);

  // The longest context of the text's end that occurred before.
  Place end() const;
  // The longest context of a place's and a token after it that occurs in the text.
  Place step(Place place, std::int64_t token) const;
  // What followed the longest context of a place's that has any continuation, likeliest first.
  std::vector<Continuation> continuations(Place place) const;

 private:
  struct Edge {
    std::int64_t token;
    std::int32_t to;
  };
  struct State {
    std::vector<Edge> next;  // by token, ascending
    std::int32_t link;
    std::int64_t length;  // of its longest context
    std::int64_t count = 0;
  };

  std::int32_t add_state(std::int64_t length, std::int32_t link, std::int64_t count);
  std::int32_t next_of(std::int32_t state, std::int64_t token) const;  // -1: none
  void set_next(std::int32_t state, std::int64_t token, std::int32_t to);
  std::int32_t context_with(std::int32_t state, std::int64_t token);
  State& at(std::int32_t state) { return states_[static_cast<std::size_t>(state)]; }
  const State& at(std::int32_t state) const { return states_[static_cast<std::size_t>(state)]; }

  std::vector<State> states_;
  std::int32_t last_ = 0;
  std::int64_t tokens_ = 0;
};

}  // namespace specplug::native
