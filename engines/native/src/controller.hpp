// How many tokens to draft: a fixed number, or what measured costs make worth it; docs/DRAFTING.md.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace specplug::native {

// What drafting costs the target's call.
struct Prices {
  explicit Prices(std::vector<double> added);

  std::vector<double> seconds;   // what n drafted tokens add to a call without, n = 0, 1, …
  std::vector<double> marginal;  // what one more than n costs, the best number of further ones taken
};

// What a round may draft.
struct Budget {
  std::size_t most;                // tokens, at least 1
  bool branching;                  // whether several tokens may follow one
  const Prices* prices = nullptr;  // of `most` tokens at least; null: they cost nothing
  double rate = 0;                 // tokens that a second is worth

  // Whether one more token than `drafted` is worth its cost and the seconds that finding it takes.
  bool pays(std::size_t drafted, double reach, double seconds = 0) const;

  // How many of the tokens, taken in order, give the most tokens for the time they take.
  std::size_t size(const std::vector<double>& reaches) const;
};

// Seconds of a target call by width, from measurements, kept up to date by more of them.
class CallCosts {
 public:
  explicit CallCosts(const std::map<std::int64_t, double>& measured);

  double at(std::size_t width) const;
  void observe(std::size_t width, double seconds);
  Prices prices(std::size_t most) const;

 private:
  std::vector<double> seconds_;
  double common_ = 1;
};

using CostsByContext = std::map<std::int64_t, CallCosts>;

// Decides what each round may draft, and hears what became of it.
class DraftLength {
 public:
  virtual ~DraftLength() = default;
  virtual std::size_t longest() const = 0;
  // A generation begins after so many tokens. What drafts gained is learnt by tenant.
  virtual void begin(std::int64_t context, const std::string& tenant) = 0;
  virtual std::optional<Budget> budget(std::size_t room, bool branching) = 0;
  virtual void record(std::size_t drafted, std::size_t tokens, double target_seconds,
                      double draft_seconds) = 0;
};

std::unique_ptr<DraftLength> fixed_length(std::size_t draft_tokens);
std::unique_ptr<DraftLength> measured_length(CostsByContext costs);

}  // namespace specplug::native
