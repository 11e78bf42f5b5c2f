// An opened bundle, ready to decode: shared by any number of decoders in any threads.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "controller.hpp"
#include "engine.hpp"
#include "error.hpp"
#include "history.hpp"
#include "source.hpp"
#include "tokenizer.hpp"

namespace specplug::native {

struct ModelOptions {
  int threads = 0;  // 0: one a physical core
  bool load_draft = false;
  std::vector<std::string> providers;
  std::size_t history_tokens = 100'000;
  bool allow_narrow = false;
};

class Model {
 public:
  Model(const std::string& folder, const ModelOptions& options);

  const Bundle& bundle() const { return bundle_; }
  const Graph& target() const { return *target_; }
  bool has_draft() const { return draft_ != nullptr; }
  const std::vector<std::int64_t>& stop_token_ids() const { return stop_token_ids_; }

  // The tokenizer, read when it is first asked for. Throws Error(UNSUPPORTED) if there is none that
  // this library can run; null from find_tokenizer().
  const Tokenizer& tokenizer() const;
  const Tokenizer* find_tokenizer() const;

  // An engine over the target's graph, with a cache of its own.
  std::unique_ptr<Engine> new_engine() const { return new_engine(target_); }

  // The sources of guesses that a drafter's name stands for, and the engine of a draft model among
  // them; it shares the target's cache where the draft is the target itself.
  struct Guessing {
    Sources sources;
    std::shared_ptr<Engine> draft;
  };
  Guessing guessing(const std::string& drafter, const Engine& target, std::size_t lookup_min,
                    std::size_t lookup_max) const;

  // What calls of the target cost: from tuning.json, or measured once, over the engine given.
  CostsByContext costs(Engine& engine) const;

 private:
  static std::unique_ptr<Engine> new_engine(const std::shared_ptr<const Graph>& graph);
  std::shared_ptr<Engine> new_draft_engine(const Engine& target) const;

  ModelOptions options_;
  Bundle bundle_;
  Environment environment_;
  std::shared_ptr<const Graph> target_;
  std::shared_ptr<const Graph> draft_;
  std::vector<std::int64_t> stop_token_ids_;
  std::shared_ptr<History> history_;
  mutable std::mutex lock_;  // of what follows
  mutable std::unique_ptr<const Tokenizer> tokenizer_;
  mutable std::optional<Error> tokenizer_fault_;
  mutable std::optional<CostsByContext> costs_;
};

}  // namespace specplug::native
