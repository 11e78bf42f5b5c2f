// What guesses the next token at any node of a draft; several are merged into one tree.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proposal.hpp"
#include "sampler.hpp"
#include "scores.hpp"

namespace specplug::native {

// What a source's confidence depends on; the chance of each kind is learnt.
using Kind = std::int64_t;
constexpr Kind kAny = -1;  // of a costly source's next guess, before it is known

struct Guess {
  std::int64_t token;
  Kind kind;
};

// Whatever a source needs to know of a context; none: it is lost.
using Place = std::optional<std::vector<std::int64_t>>;

// What a drafter may know of a generation before it begins.
struct Request {
  Sampler* sampler;  // chooses the draft's tokens as it chooses the target's
  std::size_t prompt_tokens;
  Tokens prediction;
  std::string tenant;
};

// What became of a round.
struct Outcome {
  std::int64_t after;  // the last token that was committed before
  const Proposal& proposal;
  const Verdict& verdict;
  const Tokens& tokens;  // those that were committed
  Scores& scores;        // of the target
};

class Source {
 public:
  virtual ~Source() = default;

  // What the guesses at a place cost; 0: next to nothing.
  virtual double seconds() const { return 0; }
  // What reading the context took since begin(): later guesses are spared it.
  virtual double reading_seconds() const { return 0; }

  // The place of a context's end, of the same sequence as before, and longer.
  virtual Place begin(const Tokens& context) = 0;
  // The place after one token more.
  virtual Place step(const Place& place, std::int64_t token) = 0;
  // What may come next, likeliest first.
  virtual std::vector<Guess> guesses(const Place& place) = 0;
  // The chance of a guess of a kind that was never seen.
  virtual double prior(Kind kind) const = 0;

  virtual void commit(const Outcome&) {}
  virtual void reset(const Request&) {}                  // the next context is of a new sequence
  virtual void finish(const Request&, const Tokens&) {}  // a sequence is complete
};

using Sources = std::vector<std::unique_ptr<Source>>;

}  // namespace specplug::native
