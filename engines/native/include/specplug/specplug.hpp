// specplug from C++17: RAII over the C interface in specplug.h, which see for what everything means.
//
//   specplug::Model model("smol.bundle");
//   specplug::Decoder decoder(model);
//   specplug::GenerationOptions options;
//   options.on_run = [](const specplug::Run& run) { std::cout << run.text << std::flush; };
//   specplug::Result result = decoder.generate(model.encode("Once upon a time"), options);
//
// Models and decoders can be moved and not copied; one that was moved from can only be assigned to or
// destroyed. Errors are thrown as specplug::Error, or as std::bad_alloc where memory ran out. Threads:
// as in C, a model for all, a decoder for one at a time.
#ifndef SPECPLUG_HPP
#define SPECPLUG_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "specplug.h"

namespace specplug {

using Tokens = std::vector<std::int64_t>;

class Error : public std::runtime_error {
 public:
  Error(specplug_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  specplug_status status() const noexcept { return status_; }

 private:
  specplug_status status_;
};

namespace detail {

inline void check(specplug_status status) {
  if (status == SPECPLUG_OK) return;
  if (status == SPECPLUG_ERROR_OUT_OF_MEMORY) throw std::bad_alloc();
  throw Error(status, specplug_error_message());
}

struct Deleter {
  void operator()(specplug_model* model) const { specplug_model_close(model); }
  void operator()(specplug_decoder* decoder) const { specplug_decoder_destroy(decoder); }
  void operator()(void* memory) const { specplug_free(memory); }
};

inline std::vector<const char*> pointers(const std::vector<std::string>& texts) {
  std::vector<const char*> found;
  for (const auto& text : texts) found.push_back(text.c_str());
  return found;
}

}  // namespace detail

struct ModelOptions {
  int threads = 0;
  bool load_draft = false;
  std::vector<std::string> providers;
  std::size_t history_tokens = 100'000;
  bool allow_narrow = false;
};

class Model {
 public:
  explicit Model(const std::string& folder, const ModelOptions& options = {}) {
    const auto providers = detail::pointers(options.providers);
    specplug_model_options given;
    specplug_model_options_init(&given);
    given.threads = options.threads;
    given.load_draft = options.load_draft;
    given.providers = providers.data();
    given.provider_count = providers.size();
    given.history_tokens = options.history_tokens;
    given.allow_narrow = options.allow_narrow;
    specplug_model* model = nullptr;
    detail::check(specplug_model_open(folder.c_str(), &given, &model));
    handle_.reset(model);
  }

  specplug_model* get() const noexcept { return handle_.get(); }

  // Its pointers live as long as the model.
  specplug_model_info info() const {
    specplug_model_info found{};
    found.size = sizeof found;
    detail::check(specplug_model_get_info(get(), &found));
    return found;
  }

  // special_tokens: add what the tokenizer puts around a text.
  Tokens encode(std::string_view text, bool special_tokens = true) const {
    std::int64_t* ids = nullptr;
    std::size_t count = 0;
    detail::check(
        specplug_encode(get(), text.data(), text.size(), special_tokens, &ids, &count));
    const std::unique_ptr<std::int64_t, detail::Deleter> owned(ids);
    return {ids, ids + count};
  }

  std::string decode(const Tokens& ids) const {
    char* text = nullptr;
    std::size_t bytes = 0;
    detail::check(specplug_decode(get(), ids.data(), ids.size(), &text, &bytes));
    const std::unique_ptr<char, detail::Deleter> owned(text);
    return {text, bytes};
  }

 private:
  std::unique_ptr<specplug_model, detail::Deleter> handle_;
};

struct DecoderOptions {
  std::string drafter = "auto";
  int draft_tokens = SPECPLUG_AUTO;
  bool inexact_trees = false;
  int prompt_lookup_min = 2;
  int prompt_lookup_max = 16;
};

// A run of new tokens; valid during the callback.
struct Run {
  const std::int64_t* ids;
  std::size_t count;
  std::size_t accepted;
  std::string_view text;
};

struct GenerationOptions {
  std::int64_t max_tokens = 256;
  double temperature = 0;
  std::int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double typical_p = 1;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::map<std::int64_t, double> logit_bias;
  std::int64_t no_repeat_ngram = 0;
  Tokens banned_tokens;
  std::map<std::int64_t, std::int64_t> forced_tokens;
  std::uint64_t seed = 0;
  std::uint64_t sample = 0;
  specplug_acceptance acceptance = SPECPLUG_COUPLED;
  bool own_stop_tokens = false;  // end at stop_token_ids in place of the bundle's
  Tokens stop_token_ids;
  std::vector<std::string> stop;
  bool text = false;  // give runs their text
  Tokens prediction;
  std::string tenant;

  // Called for each run of tokens. Return false to cancel, or use on_run for a callback that never
  // does. What it throws ends the generation and comes out of generate().
  std::function<bool(const Run&)> on_run_or_stop;
  std::function<void(const Run&)> on_run;
};

struct Result {
  Tokens tokens;
  specplug_stats stats{};  // its pointers are valid until the decoder's next generation
};

class Decoder {
 public:
  explicit Decoder(const Model& model, const DecoderOptions& options = {}) {
    specplug_decoder_options given;
    specplug_decoder_options_init(&given);
    given.drafter = options.drafter.c_str();
    given.draft_tokens = options.draft_tokens;
    given.inexact_trees = options.inexact_trees;
    given.prompt_lookup_min = options.prompt_lookup_min;
    given.prompt_lookup_max = options.prompt_lookup_max;
    specplug_decoder* decoder = nullptr;
    detail::check(specplug_decoder_create(model.get(), &given, &decoder));
    handle_.reset(decoder);
  }

  specplug_decoder* get() const noexcept { return handle_.get(); }

  Result generate(const Tokens& prompt, const GenerationOptions& options = {}) {
    Call call(options);
    const auto status = specplug_generate(get(), prompt.data(), prompt.size(), &call.given);
    if (call.thrown) std::rethrow_exception(call.thrown);
    detail::check(status);
    return result();
  }

  // Of the latest generation, also of one that failed.
  Result result() const {
    Result found;
    const std::int64_t* ids = nullptr;
    std::size_t count = 0;
    detail::check(specplug_decoder_tokens(get(), &ids, &count));
    found.tokens.assign(ids, ids + count);
    found.stats.size = sizeof found.stats;
    detail::check(specplug_decoder_get_stats(get(), &found.stats));
    return found;
  }

  // End the running generation, from any thread.
  void cancel() noexcept { specplug_decoder_cancel(get()); }

 private:
  // The options in C's form, and what a callback threw.
  struct Call {
    explicit Call(const GenerationOptions& options)
        : options(options), stop(detail::pointers(options.stop)) {
      specplug_generation_options_init(&given);
      given.max_tokens = options.max_tokens;
      given.temperature = options.temperature;
      given.top_k = options.top_k;
      given.top_p = options.top_p;
      given.min_p = options.min_p;
      given.typical_p = options.typical_p;
      given.repetition_penalty = options.repetition_penalty;
      given.presence_penalty = options.presence_penalty;
      given.frequency_penalty = options.frequency_penalty;
      for (const auto& [token, bias] : options.logit_bias) {
        bias_tokens.push_back(token);
        bias_values.push_back(bias);
      }
      given.bias_tokens = bias_tokens.data();
      given.bias_values = bias_values.data();
      given.bias_count = bias_tokens.size();
      given.no_repeat_ngram = options.no_repeat_ngram;
      given.banned_tokens = options.banned_tokens.data();
      given.banned_count = options.banned_tokens.size();
      for (const auto& [position, token] : options.forced_tokens) {
        forced_positions.push_back(position);
        forced_tokens.push_back(token);
      }
      given.forced_positions = forced_positions.data();
      given.forced_tokens = forced_tokens.data();
      given.forced_count = forced_tokens.size();
      given.seed = options.seed;
      given.sample = options.sample;
      given.acceptance = options.acceptance;
      static const std::int64_t no_token = 0;
      if (options.own_stop_tokens) {
        const auto& ids = options.stop_token_ids;
        given.stop_token_ids = ids.empty() ? &no_token : ids.data();
        given.stop_token_count = ids.size();
      }
      given.stop = stop.data();
      given.stop_count = stop.size();
      given.text = options.text;
      given.prediction = options.prediction.data();
      given.prediction_count = options.prediction.size();
      given.tenant = options.tenant.c_str();
      if (options.on_run || options.on_run_or_stop) {
        given.on_run = &Call::on_run;
        given.user_data = this;
      }
    }

    static int on_run(void* user_data, const specplug_run* run) noexcept {
      auto& call = *static_cast<Call*>(user_data);
      try {
        const Run told{run->ids, run->count, run->accepted, {run->text, run->bytes}};
        if (call.options.on_run) call.options.on_run(told);
        return call.options.on_run_or_stop && !call.options.on_run_or_stop(told);
      } catch (...) {  // no exception may pass through C
        call.thrown = std::current_exception();
        return 1;
      }
    }

    const GenerationOptions& options;
    std::vector<const char*> stop;
    Tokens bias_tokens;
    std::vector<double> bias_values;
    Tokens forced_positions;
    Tokens forced_tokens;
    specplug_generation_options given;
    std::exception_ptr thrown;
  };

  std::unique_ptr<specplug_decoder, detail::Deleter> handle_;
};

}  // namespace specplug

#endif
