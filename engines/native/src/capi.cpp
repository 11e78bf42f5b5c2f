// The C interface: handles, options by size, exceptions as statuses.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>

#include "decoder.hpp"
#include "specplug/specplug.h"

using namespace specplug::native;

struct specplug_model {
  std::shared_ptr<const Model> model;
};

struct specplug_decoder {
  Decoder decoder;
  std::atomic<bool> running{false};

  specplug_decoder(std::shared_ptr<const Model> model, const DecoderOptions& options)
      : decoder(std::move(model), options) {}
};

namespace {

constexpr std::size_t kMostHistory = std::size_t{1} << 30;  // the automata count in 32 bits

// Fixed room, so that saying what went wrong cannot itself run out of memory.
thread_local char last_message[1024] = "";

specplug_status failed(specplug_status status, const char* message) noexcept {
  std::strncpy(last_message, message, sizeof last_message - 1);
  auto end = std::strlen(last_message);
  if (end == sizeof last_message - 1) {  // cut short, but not within a character
    while (end && (static_cast<unsigned char>(last_message[end - 1]) & 0xC0) == 0x80) --end;
    if (end && static_cast<unsigned char>(last_message[end - 1]) >= 0xC0) --end;
    last_message[end] = 0;
  }
  return status;
}

template <typename Work>
specplug_status guarded(Work work) noexcept {
  try {
    work();
    return SPECPLUG_OK;
  } catch (const Error& error) {
    return failed(error.status, error.what());
  } catch (const std::bad_alloc&) {
    return failed(SPECPLUG_ERROR_OUT_OF_MEMORY, "no memory left");
  } catch (const std::exception& error) {
    return failed(SPECPLUG_ERROR_INTERNAL, error.what());
  } catch (...) {
    return failed(SPECPLUG_ERROR_INTERNAL, "an unknown exception");
  }
}

void require(const void* argument, const char* name) {
  if (!argument) refuse(name, " is NULL");
}

// The caller's options over the defaults: as much of them as its version of the header has.
template <typename Options>
Options options_of(const Options* given, void (*init)(Options*)) {
  Options options;
  init(&options);
  if (!given) return options;
  if (given->size < sizeof given->size || given->size > 16 * sizeof options) {
    refuse("size ", given->size, " of options: fill them by their _init function");
  }
  const auto* bytes = reinterpret_cast<const char*>(given);
  if (given->size > sizeof options &&
      std::any_of(bytes + sizeof options, bytes + given->size, [](char one) { return one != 0; })) {
    refuse("size ", given->size, " of options: fields are set that specplug ", SPECPLUG_VERSION,
           " does not know; it knows the first ", sizeof options, " bytes");
  }
  std::memcpy(static_cast<void*>(&options), given, std::min(given->size, sizeof options));
  return options;
}

// What is told, as much of it as the caller's version of the header has.
template <typename Told>
void tell(const Told& told, Told* to) {
  const auto size = to->size;
  if (size < sizeof size) refuse("size ", size, ": set it to the struct's size");
  std::memcpy(static_cast<void*>(to), &told, std::min(size, sizeof told));
  to->size = size;
}

// No list or text of a caller is longer; a count of -1 or of uninitialized memory mostly is.
constexpr std::size_t kMostEntries = INT32_MAX;

void check_count(std::size_t count, const char* name) {
  if (count > kMostEntries) {
    refuse("the count of ", name, " is ", count, ": it must be in [0, ", kMostEntries, "]");
  }
}

template <typename Value>
std::vector<Value> list_of(const Value* values, std::size_t count, const char* name) {
  check_count(count, name);
  if (count) require(values, name);
  return {values, values + count};
}

std::vector<std::string> texts_of(const char* const* texts, std::size_t count, const char* name) {
  std::vector<std::string> found;
  for (const auto* text : list_of(texts, count, name)) {
    require(text, name);
    found.emplace_back(text);
  }
  return found;
}

// Memory that specplug_free() takes back.
template <typename Value>
Value* handed_out(const Value* values, std::size_t count, std::size_t room) {
  auto* memory = static_cast<Value*>(std::malloc(std::max<std::size_t>(room * sizeof(Value), 1)));
  if (!memory) throw std::bad_alloc();
  if (count) std::memcpy(memory, values, count * sizeof(Value));
  return memory;
}

// Marks a decoder as in use, or refuses.
class Running {
 public:
  explicit Running(const specplug_decoder* decoder)
      : running_(const_cast<specplug_decoder*>(decoder)->running) {
    if (running_.exchange(true)) {
      fail(SPECPLUG_ERROR_BUSY, "the decoder runs a generation: wait for it, or cancel it");
    }
  }
  ~Running() { running_ = false; }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  std::atomic<bool>& running_;
};

// Two lists as a map, whose keys are told apart.
template <typename Value>
std::map<std::int64_t, Value> map_of(const std::int64_t* keys, const Value* values,
                                     std::size_t count, const char* keys_name,
                                     const char* values_name) {
  check_count(count, keys_name);
  if (count) require(values, values_name);
  std::map<std::int64_t, Value> found;
  const auto listed = list_of(keys, count, keys_name);
  for (std::size_t i = 0; i < count; ++i) {
    if (!found.emplace(listed[i], values[i]).second) {
      refuse(keys_name, ": ", listed[i], " is there twice");
    }
  }
  return found;
}

void check_acceptance(const specplug_generation_options& given) {
  std::int32_t rule;  // any number may be there, and not only the enumeration's
  static_assert(sizeof rule == sizeof given.acceptance);
  std::memcpy(&rule, &given.acceptance, sizeof rule);
  if (rule != SPECPLUG_COUPLED && rule != SPECPLUG_REJECTION && rule != SPECPLUG_BLOCK) {
    refuse("acceptance ", rule, ": it must be SPECPLUG_COUPLED, _REJECTION or _BLOCK");
  }
  if (rule != SPECPLUG_COUPLED && given.temperature != 0) {
    fail(SPECPLUG_ERROR_UNSUPPORTED, "acceptance rule ", rule,
         ": this library has the coupled rule; rejection and block run from Python");
  }
}

GenerationOptions generation_of(const specplug_generation_options& given) {
  check_acceptance(given);
  GenerationOptions made;
  made.max_tokens = given.max_tokens;
  auto& sampling = made.sampling;
  sampling.temperature = given.temperature;
  sampling.top_k = given.top_k;
  sampling.top_p = given.top_p;
  sampling.min_p = given.min_p;
  sampling.typical_p = given.typical_p;
  sampling.repetition_penalty = given.repetition_penalty;
  sampling.presence_penalty = given.presence_penalty;
  sampling.frequency_penalty = given.frequency_penalty;
  sampling.logit_bias = map_of(given.bias_tokens, given.bias_values, given.bias_count,
                               "bias_tokens", "bias_values");
  sampling.no_repeat_ngram = given.no_repeat_ngram;
  sampling.banned_tokens = list_of(given.banned_tokens, given.banned_count, "banned_tokens");
  sampling.forced_tokens = map_of(given.forced_positions, given.forced_tokens, given.forced_count,
                                  "forced_positions", "forced_tokens");
  sampling.seed = given.seed;
  sampling.sample = given.sample;
  if (given.stop_token_ids) {
    made.stop_token_ids = list_of(given.stop_token_ids, given.stop_token_count, "stop_token_ids");
  }
  made.stop = texts_of(given.stop, given.stop_count, "stop");
  made.text = given.text != 0;
  made.prediction = list_of(given.prediction, given.prediction_count, "prediction");
  if (given.tenant) made.tenant = given.tenant;
  if (given.on_run) {
    made.on_run = [on_run = given.on_run, user_data = given.user_data](const specplug_run& run) {
      return on_run(user_data, &run) == 0;
    };
  }
  return made;
}

}  // namespace

extern "C" {

int specplug_abi_version(void) { return SPECPLUG_ABI_VERSION; }
const char* specplug_version(void) { return SPECPLUG_VERSION; }
const char* specplug_error_message(void) { return last_message; }
void specplug_free(void* memory) { std::free(memory); }

void specplug_model_options_init(specplug_model_options* options) {
  if (!options) return;
  *options = {};
  options->size = sizeof *options;
  options->history_tokens = ModelOptions().history_tokens;
}

specplug_status specplug_model_open(const char* folder, const specplug_model_options* options,
                                    specplug_model** model) {
  return guarded([&] {
    require(folder, "folder");
    require(model, "model");
    const auto given = options_of(options, specplug_model_options_init);
    if (given.threads < 0 || given.threads > 1024) {
      refuse("threads ", given.threads, ": it must be in [0, 1024]");
    }
    if (given.history_tokens > kMostHistory) {
      refuse("history_tokens ", given.history_tokens, ": it must be in [0, 2**30]");
    }
    ModelOptions made;
    made.threads = given.threads;
    made.load_draft = given.load_draft != 0;
    made.providers = texts_of(given.providers, given.provider_count, "providers");
    for (const auto& provider : made.providers) {
      if (provider.empty()) refuse("providers '': a provider has a name");
    }
    made.history_tokens = given.history_tokens;
    made.allow_narrow = given.allow_narrow != 0;
    auto opened = std::make_unique<specplug_model>();
    opened->model = std::make_shared<const Model>(folder, made);
    *model = opened.release();
  });
}

void specplug_model_close(specplug_model* model) { delete model; }

specplug_status specplug_model_get_info(const specplug_model* model, specplug_model_info* info) {
  return guarded([&] {
    require(model, "model");
    require(info, "info");
    const auto& opened = *model->model;
    const auto& tokenizer = opened.bundle().manifest().tokenizer;
    specplug_model_info told = {};
    told.vocab_size = opened.target().component().vocab_size;
    told.context_limit = opened.target().context_limit();
    told.min_width = static_cast<std::int32_t>(opened.target().min_width());
    told.has_draft = opened.has_draft();
    told.has_tokenizer = opened.find_tokenizer() != nullptr;
    told.stop_token_ids = opened.stop_token_ids().data();
    told.stop_token_count = opened.stop_token_ids().size();
    if (tokenizer && tokenizer->chat_template) told.chat_template = tokenizer->chat_template->c_str();
    tell(told, info);
  });
}

specplug_status specplug_encode(const specplug_model* model, const char* text, size_t bytes,
                                int special_tokens, int64_t** ids, size_t* count) {
  return guarded([&] {
    require(model, "model");
    check_count(bytes, "the text's bytes");
    if (bytes) require(text, "text");
    require(ids, "ids");
    require(count, "count");
    const auto found = model->model->tokenizer().encode(
        bytes ? std::string_view(text, bytes) : std::string_view(), special_tokens != 0);
    *ids = handed_out(found.data(), found.size(), found.size());
    *count = found.size();
  });
}

specplug_status specplug_decode(const specplug_model* model, const int64_t* ids, size_t count,
                                char** text, size_t* bytes) {
  return guarded([&] {
    require(model, "model");
    require(text, "text");
    require(bytes, "bytes");
    const auto found = model->model->tokenizer().decode(list_of(ids, count, "ids"));
    *text = handed_out(found.c_str(), found.size() + 1, found.size() + 1);
    *bytes = found.size();
  });
}

void specplug_decoder_options_init(specplug_decoder_options* options) {
  if (!options) return;
  const DecoderOptions defaults;
  *options = {};
  options->size = sizeof *options;
  options->drafter = "auto";
  options->draft_tokens = defaults.draft_tokens;
  options->prompt_lookup_min = defaults.prompt_lookup_min;
  options->prompt_lookup_max = defaults.prompt_lookup_max;
}

specplug_status specplug_decoder_create(specplug_model* model,
                                        const specplug_decoder_options* options,
                                        specplug_decoder** decoder) {
  return guarded([&] {
    require(model, "model");
    require(decoder, "decoder");
    const auto given = options_of(options, specplug_decoder_options_init);
    require(given.drafter, "drafter");
    DecoderOptions made;
    made.drafter = given.drafter;
    made.draft_tokens = given.draft_tokens;
    made.inexact_trees = given.inexact_trees != 0;
    made.prompt_lookup_min = given.prompt_lookup_min;
    made.prompt_lookup_max = given.prompt_lookup_max;
    *decoder = new specplug_decoder(model->model, made);
  });
}

void specplug_decoder_destroy(specplug_decoder* decoder) { delete decoder; }

void specplug_generation_options_init(specplug_generation_options* options) {
  if (!options) return;
  const GenerationOptions defaults;
  *options = {};
  options->size = sizeof *options;
  options->max_tokens = defaults.max_tokens;
  options->top_p = defaults.sampling.top_p;
  options->typical_p = defaults.sampling.typical_p;
  options->repetition_penalty = defaults.sampling.repetition_penalty;
}

specplug_status specplug_generate(specplug_decoder* decoder, const int64_t* prompt, size_t count,
                                  const specplug_generation_options* options) {
  return guarded([&] {
    require(decoder, "decoder");
    const Running running(decoder);
    decoder->decoder.generate(
        list_of(prompt, count, "prompt"),
        generation_of(options_of(options, specplug_generation_options_init)));
  });
}

void specplug_decoder_cancel(specplug_decoder* decoder) {
  if (decoder) decoder->decoder.cancel();
}

specplug_status specplug_decoder_tokens(const specplug_decoder* decoder, const int64_t** ids,
                                        size_t* count) {
  return guarded([&] {
    require(decoder, "decoder");
    require(ids, "ids");
    require(count, "count");
    const Running running(decoder);
    const auto [first, number] = decoder->decoder.new_tokens();
    *ids = first;
    *count = number;
  });
}

specplug_status specplug_decoder_get_stats(const specplug_decoder* decoder, specplug_stats* stats) {
  return guarded([&] {
    require(decoder, "decoder");
    require(stats, "stats");
    const Running running(decoder);
    const auto& found = decoder->decoder.stats();
    specplug_stats told = {};
    told.finish_reason = found.finish_reason;
    told.prompt_tokens = found.prompt_tokens;
    told.new_tokens = found.new_tokens;
    told.rounds = static_cast<std::int64_t>(found.drafted_per_round.size());
    for (const auto drafted : found.drafted_per_round) told.drafted += drafted;
    for (const auto accepted : found.accepted_per_round) told.accepted += accepted;
    told.draft_length = found.draft_length;
    told.prefill_seconds = found.prefill_seconds;
    told.decode_seconds = found.decode_seconds;
    told.target_seconds = found.target_seconds;
    told.draft_seconds = found.draft_seconds;
    told.engine_seconds = found.engine_seconds;
    told.drafted_per_round = found.drafted_per_round.data();
    told.accepted_per_round = found.accepted_per_round.data();
    told.draft_failures = found.draft_failures;
    told.draft_error = found.draft_error.c_str();
    tell(told, stats);
  });
}

}  // extern "C"
