// The loop: propose, verify, accept, commit. Plain decoding is the same loop with nothing drafted.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "feeding.hpp"
#include "model.hpp"
#include "text_stream.hpp"
#include "tree_drafter.hpp"

namespace specplug::native {

struct DecoderOptions {
  std::string drafter = "auto";
  int draft_tokens = SPECPLUG_AUTO;
  bool inexact_trees = false;
  int prompt_lookup_min = 2;
  int prompt_lookup_max = 16;
};

struct GenerationOptions {
  std::int64_t max_tokens = 256;
  SamplingParams sampling;
  std::optional<Tokens> stop_token_ids;  // none: the bundle's
  std::vector<std::string> stop;
  bool text = false;  // give runs their text
  Tokens prediction;
  std::string tenant;
  std::function<bool(const specplug_run&)> on_run;  // false: cancel
};

struct Stats {
  specplug_finish_reason finish_reason = SPECPLUG_FINISH_NONE;
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;
  std::int64_t draft_length = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;
  double target_seconds = 0;
  double draft_seconds = 0;
  double engine_seconds = 0;
  std::int64_t draft_failures = 0;
  std::string draft_error;
  std::vector<std::int32_t> drafted_per_round;
  std::vector<std::int32_t> accepted_per_round;
};

class Decoder {
 public:
  Decoder(std::shared_ptr<const Model> model, const DecoderOptions& options);

  void generate(const Tokens& prompt, const GenerationOptions& options);
  void cancel() { cancelled_ = true; }

  // The latest generation's, and how many; valid until the next one.
  std::pair<const std::int64_t*, std::size_t> new_tokens() const;
  const Stats& stats() const { return stats_; }

 private:
  void begin(const Tokens& prompt, const GenerationOptions& options);
  void check(const Tokens& prompt, const GenerationOptions& options) const;
  void round();
  Proposal propose();
  void commit(const Proposal& proposal, const Verdict& verdict, Scores& scores);
  void report(const Tokens& made, std::size_t accepted, const std::string& text);
  void count(std::size_t drafted, std::size_t accepted, std::size_t made);
  std::size_t room() const { return most_ - tokens_.size(); }
  double engines_seconds() const;

  std::shared_ptr<const Model> model_;
  std::unique_ptr<Engine> target_;
  std::shared_ptr<Engine> draft_;  // of a draft model, if any
  TreeDrafter drafter_;
  std::unique_ptr<DraftLength> length_;  // null until the costs were measured
  bool trees_;
  std::atomic<bool> cancelled_{false};

  // Of the running generation.
  const GenerationOptions* options_ = nullptr;
  std::optional<Sampler> sampler_;
  std::optional<TextStream> text_;
  std::unordered_set<std::int64_t> stop_;
  Tokens tokens_;          // the prompt's and the answer's so far
  std::size_t most_ = 0;   // of them
  std::size_t cached_ = 0;  // whose cache entries the target holds
  Stats stats_;
  double clock_ = 0;
  double engines_before_ = 0;
  double round_target_seconds_ = 0;
  double round_draft_seconds_ = 0;
  double reading_seconds_ = 0;
};

}  // namespace specplug::native
