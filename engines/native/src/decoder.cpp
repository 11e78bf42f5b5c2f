#include "decoder.hpp"

#include <algorithm>

#include "clock.hpp"
#include "contract.hpp"
#include "error.hpp"

namespace specplug::native {

Decoder::Decoder(std::shared_ptr<const Model> model, const DecoderOptions& options)
    : model_(std::move(model)), target_(model_->new_engine()), drafter_(Sources()) {
  const DecoderOptions defaults;
  const auto least = options.prompt_lookup_min;
  const auto most = options.prompt_lookup_max;
  const auto unused = [&](const char* name, int value) {
    refuse(name, " ", value, ": drafter ", in_quotes(options.drafter), " does not use it, 'ngram' alone does");
  };
  if (options.drafter != "ngram" && least != defaults.prompt_lookup_min) {
    unused("prompt_lookup_min", least);
  }
  if (options.drafter != "ngram" && most != defaults.prompt_lookup_max) {
    unused("prompt_lookup_max", most);
  }
  if (least < 1 || most < least) {
    refuse("prompt_lookup_min ", least, " and prompt_lookup_max ", most,
           ": need 1 <= min <= max");
  }
  const auto wanted = options.draft_tokens;
  if (wanted != SPECPLUG_AUTO && (wanted < 0 || wanted >= static_cast<int>(kPrefillWidth))) {
    refuse("draft_tokens ", wanted, ": need SPECPLUG_AUTO, or a number from 0 to ",
           kPrefillWidth - 1);
  }
  if (options.drafter == "none" && wanted > 0) {
    refuse("draft_tokens ", wanted, ": drafter 'none' drafts nothing; choose another one, or leave ",
           "draft_tokens at SPECPLUG_AUTO or 0");
  }
  auto guessing = model_->guessing(options.drafter, *target_, static_cast<std::size_t>(least),
                                   static_cast<std::size_t>(most));
  drafter_ = TreeDrafter(std::move(guessing.sources));
  draft_ = std::move(guessing.draft);
  const auto& graph = target_->graph();
  trees_ = graph.takes_trees() && (graph.component().exact_trees() || options.inexact_trees);
  if (wanted != SPECPLUG_AUTO) length_ = fixed_length(static_cast<std::size_t>(wanted));
}

void Decoder::generate(const Tokens& prompt, const GenerationOptions& options) {
  check(prompt, options);
  cancelled_ = false;
  begin(prompt, options);
  const Request request{&*sampler_, prompt.size(), options.prediction, options.tenant};
  drafter_.reset(request);
  if (!length_ && !drafter_.empty()) length_ = measured_length(model_->costs(*target_));
  if (length_) {
    length_->begin(static_cast<std::int64_t>(prompt.size()), options.tenant);
    stats_.draft_length = static_cast<std::int64_t>(length_->longest());
  }
  try {
    while (stats_.finish_reason == SPECPLUG_FINISH_NONE) {
      if (cancelled_) throw Cancelled();
      round();
    }
  } catch (const Cancelled&) {
    stats_.finish_reason = SPECPLUG_FINISH_CANCELLED;
  } catch (...) {
    // Entries that are not numbers would spoil later answers, which are masked from them, by 0 * NaN.
    target_->cache()->clear(0);
    if (draft_) draft_->cache()->clear(0);
    drafter_.finish(request, tokens_);
    throw;
  }
  drafter_.finish(request, tokens_);
}

// Refuse, before any work, what cannot be answered.
void Decoder::check(const Tokens& prompt, const GenerationOptions& options) const {
  const auto vocab = target_->graph().component().vocab_size;
  const auto limit = target_->graph().context_limit();
  if (options.max_tokens < 1) refuse("max_tokens ", options.max_tokens, ": need at least 1");
  options.sampling.check(vocab);
  for (const auto& stop : options.stop) {
    if (stop.empty()) refuse("stop '': a stop string has at least one character");
    if (repaired(stop) != stop) refuse("stop ", in_quotes(stop), ": a stop string is UTF-8");
  }
  if (options.text || !options.stop.empty()) model_->tokenizer();  // or say why there is none
  if (prompt.empty()) refuse("the prompt is empty: at least one token is needed");
  const auto known = [&](const char* name, const Tokens& tokens) {
    for (const auto token : tokens) {
      if (token < 0 || token >= vocab) {
        refuse(name, "token id ", token, " is outside the vocabulary of ", vocab);
      }
    }
  };
  known("", prompt);
  known("prediction: ", options.prediction);
  for (const auto token : options.stop_token_ids.value_or(Tokens())) {
    if (token < 0 || token >= vocab) {
      refuse("stop_token_ids: token id ", token, " is not in [0, ", vocab, ")");
    }
  }
  if (static_cast<std::int64_t>(prompt.size()) >= limit) {
    fail(SPECPLUG_ERROR_CONTEXT_LIMIT, "the prompt has ", prompt.size(),
         " tokens and the context ends at ", limit, ": shorten the prompt");
  }
}

void Decoder::begin(const Tokens& prompt, const GenerationOptions& options) {
  tokens_ = prompt;  // first: if memory runs out here, the latest generation stays what it was
  stats_ = Stats();
  stats_.prompt_tokens = static_cast<std::int64_t>(prompt.size());
  clock_ = now();
  engines_before_ = engines_seconds();
  round_target_seconds_ = round_draft_seconds_ = reading_seconds_ = 0;
  options_ = &options;
  const auto limit = static_cast<std::size_t>(target_->graph().context_limit());
  const auto asked = static_cast<std::size_t>(options.max_tokens);
  most_ = asked > limit - prompt.size() ? limit : prompt.size() + asked;
  tokens_.reserve(most_);
  cached_ = 0;
  const auto& stop = options.stop_token_ids ? *options.stop_token_ids : model_->stop_token_ids();
  sampler_.emplace(options.sampling, target_->vocab(), prompt.size(), stop);
  const bool reads = options.text || !options.stop.empty();
  text_.emplace(reads ? &model_->tokenizer() : nullptr, options.stop, prompt);
  stop_ = {stop.begin(), stop.end()};
}

void Decoder::round() {
  const auto proposal = propose();
  const double started = now();
  Tokens pending(tokens_.begin() + static_cast<std::ptrdiff_t>(cached_), tokens_.end());
  const auto tail = pending.size();
  pending.insert(pending.end(), proposal.tokens.begin(), proposal.tokens.end());
  const auto past = static_cast<std::int64_t>(cached_);
  auto scores = feed(*target_, std::move(pending), past, proposal.size() + 1,
                     proposal.branches() ? &proposal.parents : nullptr, &cancelled_);
  const auto verdict = sampler_->judge(scores, tokens_, proposal);
  if (!verdict.straight()) {
    std::vector<std::int64_t> nodes;
    for (std::size_t node = 0; node < tail; ++node) nodes.push_back(static_cast<std::int64_t>(node));
    for (const auto node : verdict.path) nodes.push_back(static_cast<std::int64_t>(tail) + node);
    target_->cache()->keep(past, nodes);
  }
  round_target_seconds_ = now() - started;
  commit(proposal, verdict, scores);
}

Proposal Decoder::propose() {
  if (!cached_ || !length_) return {};  // the prompt's own call gives the first token alone
  const auto budget = length_->budget(room() - 1, trees_);
  if (!budget) return {};
  const double started = now();
  const auto vocab = target_->graph().component().vocab_size;
  Proposal proposal;
  try {
    proposal = within(*budget, vocab, drafter_.propose(tokens_, *budget));
  } catch (const NothingLeft&) {  // after a draft: the target will say so if it gets there
  }
  stats_.draft_failures = drafter_.failures();
  stats_.draft_error = drafter_.failure();
  round_draft_seconds_ = now() - started;
  reading_seconds_ = drafter_.reading_seconds();
  return proposal;
}

void Decoder::commit(const Proposal& proposal, const Verdict& verdict, Scores& scores) {
  const auto accepted = verdict.path.size();
  Tokens tokens;
  for (const auto node : verdict.path) {
    tokens.push_back(proposal.tokens[static_cast<std::size_t>(node)]);
  }
  tokens.push_back(verdict.bonus);
  const auto after = tokens_.back();
  const bool all = options_->max_tokens == static_cast<std::int64_t>(most_) - stats_.prompt_tokens;
  cached_ = tokens_.size() + accepted;
  Tokens made;
  std::string text;
  for (const auto token : tokens) {
    tokens_.push_back(token);
    made.push_back(token);
    auto& reason = stats_.finish_reason;
    if (stop_.count(token)) {
      reason = SPECPLUG_FINISH_STOP;
    } else if (!room()) {
      reason = all ? SPECPLUG_FINISH_LENGTH : SPECPLUG_FINISH_CONTEXT;
    }
    const bool stop = stop_.count(token) != 0;  // its own text is no part of the answer
    text += stop ? text_->end() : text_->push(token, reason != SPECPLUG_FINISH_NONE);
    if (text_->stopped()) reason = SPECPLUG_FINISH_STOP;
    if (reason != SPECPLUG_FINISH_NONE) break;
  }
  const double started = now();
  drafter_.commit({after, proposal, verdict, made, scores});
  round_draft_seconds_ += now() - started;
  const auto drafted = std::min(accepted, made.size());
  count(proposal.size(), drafted, made.size());
  report(made, drafted, text);
}

void Decoder::report(const Tokens& made, std::size_t accepted, const std::string& text) {
  if (!options_->on_run) return;
  const specplug_run run{made.data(), made.size(), accepted, text.c_str(), text.size()};
  if (!options_->on_run(run)) cancelled_ = true;
}

void Decoder::count(std::size_t drafted, std::size_t accepted, std::size_t made) {
  const double time = now();
  stats_.target_seconds += round_target_seconds_;
  stats_.draft_seconds += round_draft_seconds_;
  if (stats_.new_tokens) {
    stats_.drafted_per_round.push_back(static_cast<std::int32_t>(drafted));
    stats_.accepted_per_round.push_back(static_cast<std::int32_t>(accepted));
    stats_.decode_seconds += time - clock_;
    stats_.engine_seconds = engines_seconds() - engines_before_;
    if (length_) {
      length_->record(drafted, made, round_target_seconds_,
                      round_draft_seconds_ - reading_seconds_);
    }
  } else {
    stats_.prefill_seconds = time - clock_;
    engines_before_ = engines_seconds();
  }
  round_draft_seconds_ = reading_seconds_ = 0;
  stats_.new_tokens += static_cast<std::int64_t>(made);
  clock_ = time;
}

double Decoder::engines_seconds() const {
  return target_->seconds() + (draft_ ? draft_->seconds() : 0);
}

std::pair<const std::int64_t*, std::size_t> Decoder::new_tokens() const {
  const auto prompt = static_cast<std::size_t>(stats_.prompt_tokens);
  return {tokens_.data() + prompt, tokens_.size() - prompt};
}

}  // namespace specplug::native
