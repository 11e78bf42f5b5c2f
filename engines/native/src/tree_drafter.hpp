// Guesses merged into one tree, whose nodes are spent where they are likeliest to be reached.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "controller.hpp"
#include "source.hpp"
#include "tenants.hpp"

namespace specplug::native {

// The chance of a guess by its kind, given that what it was a continuation of came true: a long
// running mean that begins at the prior, each tenant's by itself, and a short one of this request that
// begins at the long.
class Chances {
 public:
  explicit Chances(const Source& source) : source_(&source) {}
  double at(Kind kind) const;
  void learn(Kind kind, bool came_true);
  void begin(const std::string& tenant);  // a new request: its text may be of another character

 private:
  // Of a source's guesses, of all tenants together; one takes about 100 bytes.
  static constexpr std::size_t kMostKinds = std::size_t{1} << 16;

  struct Count {
    double hits = 0;
    double guesses = 0;
  };
  const Source* source_;
  Tables<Kind, Count> tenants_{kMostKinds};
  std::shared_ptr<Recent<Kind, Count>> long_ = std::make_shared<Recent<Kind, Count>>(kMostKinds);
  std::unordered_map<Kind, Count> short_;
};

class TreeDrafter {
 public:
  // Free sources before costly ones, those that are sure more often first; none: drafts nothing.
  explicit TreeDrafter(Sources sources);

  bool empty() const { return sources_.empty(); }
  Proposal propose(const Tokens& context, const Budget& budget);
  double reading_seconds() const;  // of the latest proposal's time
  // Sources that failed since reset(), and what the last of them said. Text does not depend on them:
  // one that failed is left out until the next reset(), and after three times for good.
  std::int64_t failures() const { return failed_; }
  const std::string& failure() const { return failure_; }

  void commit(const Outcome& outcome);
  void reset(const Request& request);
  void finish(const Request& request, const Tokens& tokens);

 private:
  struct Asked {
    std::size_t which;
    std::vector<Guess> guesses;
  };
  friend class Growing;

  std::vector<Guess> guesses_of(std::size_t which, const Place& place);

  Sources sources_;
  std::vector<Chances> chances_;
  std::map<std::int64_t, std::vector<Asked>> asked_;  // by node
  std::vector<std::int64_t> failures_;                // of each source, ever
  std::vector<bool> off_;
  std::int64_t failed_ = 0;
  std::string failure_;
};

}  // namespace specplug::native
