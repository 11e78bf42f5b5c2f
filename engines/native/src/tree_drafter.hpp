// Guesses merged into one tree, whose nodes are spent where they are likeliest to be reached.
#pragma once

#include <functional>
#include <map>
#include <unordered_map>

#include "controller.hpp"
#include "source.hpp"

namespace specplug::native {

// The chance of a guess by its kind, given that what it was a continuation of came true: a long
// running mean that begins at the prior, and a short one of this request that begins at the long.
class Chances {
 public:
  explicit Chances(const Source& source) : source_(&source) {}
  double at(Kind kind) const;
  void learn(Kind kind, bool came_true);
  void begin() { short_.clear(); }  // a new request: its text may be of another character

 private:
  struct Count {
    double hits = 0;
    double guesses = 0;
  };
  const Source* source_;
  std::unordered_map<Kind, Count> long_;
  std::unordered_map<Kind, Count> short_;
};

class TreeDrafter {
 public:
  // Free sources before costly ones, those that are sure more often first; none: drafts nothing.
  explicit TreeDrafter(Sources sources);

  bool empty() const { return sources_.empty(); }
  Proposal propose(const Tokens& context, const Budget& budget);
  double reading_seconds() const;  // of the latest proposal's time

  void commit(const Outcome& outcome);
  void reset(const Request& request);
  void finish(const Request& request, const Tokens& tokens);

 private:
  struct Asked {
    std::size_t which;
    std::vector<Guess> guesses;
  };
  friend class Growing;

  Sources sources_;
  std::vector<Chances> chances_;
  std::map<std::int64_t, std::vector<Asked>> asked_;  // by node
};

}  // namespace specplug::native
