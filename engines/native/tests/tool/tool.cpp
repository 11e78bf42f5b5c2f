// What the Python tests drive: a request a line in JSON on standard input, an answer a line on
// standard output. {"op": "open" | "generate" | "encode" | "decode" | "memory", …}
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <unistd.h>

#include <specplug/specplug.hpp>

using nlohmann::json;

namespace {

struct Open {
  specplug::Model model;
  std::map<std::string, std::unique_ptr<specplug::Decoder>> decoders;  // by name
};

specplug::GenerationOptions options_of(const json& given) {
  specplug::GenerationOptions made;
  made.max_tokens = given.value("max_tokens", made.max_tokens);
  made.temperature = given.value("temperature", 0.0);
  made.top_k = given.value("top_k", 0);
  made.top_p = given.value("top_p", 1.0);
  made.min_p = given.value("min_p", 0.0);
  made.typical_p = given.value("typical_p", 1.0);
  made.repetition_penalty = given.value("repetition_penalty", 1.0);
  made.presence_penalty = given.value("presence_penalty", 0.0);
  made.frequency_penalty = given.value("frequency_penalty", 0.0);
  const auto biases = given.value("logit_bias", json::object());
  for (const auto& [token, bias] : biases.items()) {
    made.logit_bias[std::stoll(token)] = bias.get<double>();
  }
  made.no_repeat_ngram = given.value("no_repeat_ngram", 0);
  made.banned_tokens = given.value("banned_tokens", specplug::Tokens());
  const auto forced = given.value("forced_tokens", json::object());
  for (const auto& [position, token] : forced.items()) {
    made.forced_tokens[std::stoll(position)] = token.get<std::int64_t>();
  }
  made.seed = given.value("seed", std::uint64_t{0});
  made.sample = given.value("sample", std::uint64_t{0});
  if (given.value("acceptance", "coupled") == "rejection") made.acceptance = SPECPLUG_REJECTION;
  if (given.contains("stop_token_ids")) {
    made.own_stop_tokens = true;
    made.stop_token_ids = given["stop_token_ids"].get<specplug::Tokens>();
  }
  made.stop = given.value("stop", std::vector<std::string>());
  made.text = given.value("text", false);
  made.prediction = given.value("prediction", specplug::Tokens());
  made.tenant = given.value("tenant", "");
  return made;
}

json stats_of(const specplug_stats& stats) {
  const auto* drafted = stats.drafted_per_round;
  const auto* accepted = stats.accepted_per_round;
  static const char* const reasons[] = {"none", "stop", "length", "context", "cancelled"};
  return {{"finish_reason", reasons[stats.finish_reason]},
          {"prompt_tokens", stats.prompt_tokens},
          {"new_tokens", stats.new_tokens},
          {"rounds", stats.rounds},
          {"drafted", stats.drafted},
          {"accepted", stats.accepted},
          {"draft_length", stats.draft_length},
          {"prefill_seconds", stats.prefill_seconds},
          {"decode_seconds", stats.decode_seconds},
          {"target_seconds", stats.target_seconds},
          {"draft_seconds", stats.draft_seconds},
          {"engine_seconds", stats.engine_seconds},
          {"draft_failures", stats.draft_failures},
          {"draft_error", stats.draft_error},
          {"drafted_per_round", std::vector<int>(drafted, drafted + stats.rounds)},
          {"accepted_per_round", std::vector<int>(accepted, accepted + stats.rounds)}};
}

// Resident memory, now and at most, in bytes.
json memory() {
  std::map<std::string, long> found;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    const auto colon = line.find(':');
    if (line.rfind("Vm", 0) == 0 || line.rfind("Rss", 0) == 0) {
      found[line.substr(0, colon)] = std::stol(line.substr(colon + 1)) * 1024;
    }
  }
  return found;
}

class Session {
 public:
  json answer(const json& request) {
    const auto op = request.at("op").get<std::string>();
    if (op == "open") return open(request);
    if (op == "memory") return memory();
    auto& model = opened_->model;
    if (op == "encode") {
      return model.encode(request.at("text").get<std::string>(), request.value("special", true));
    }
    if (op == "decode") return model.decode(request.at("ids").get<specplug::Tokens>());
    if (op == "generate") return generate(request);
    if (op == "threads") return threads(request);
    throw std::invalid_argument("op " + op);
  }

 private:
  json open(const json& request) {
    specplug::ModelOptions options;
    options.threads = request.value("threads", 0);
    options.load_draft = request.value("load_draft", false);
    options.providers = request.value("providers", options.providers);
    options.history_tokens = request.value("history_tokens", options.history_tokens);
    options.allow_narrow = request.value("allow_narrow", false);
    opened_.reset();
    opened_ = std::make_unique<Open>(Open{specplug::Model(request.at("path"), options), {}});
    if (!request.value("info", true)) return nullptr;  // which reads the tokenizer
    const auto info = opened_->model.info();
    return {{"vocab_size", info.vocab_size},
            {"context_limit", info.context_limit},
            {"min_width", info.min_width},
            {"has_draft", info.has_draft},
            {"has_tokenizer", info.has_tokenizer},
            {"chat_template", info.chat_template ? json(info.chat_template) : json()}};
  }

  specplug::Decoder make_decoder(const json& request) {
    specplug::DecoderOptions options;
    options.drafter = request.value("drafter", "auto");
    options.draft_tokens = request.value("draft_tokens", static_cast<int>(SPECPLUG_AUTO));
    options.inexact_trees = request.value("inexact_trees", false);
    options.prompt_lookup_min = request.value("prompt_lookup_min", options.prompt_lookup_min);
    options.prompt_lookup_max = request.value("prompt_lookup_max", options.prompt_lookup_max);
    return specplug::Decoder(opened_->model, options);
  }

  json generate(const json& request) {
    auto& decoder = opened_->decoders[request.value("decoder", "")];
    if (!decoder || request.value("fresh", false)) {
      decoder = std::make_unique<specplug::Decoder>(make_decoder(request));
    }
    auto options = options_of(request);
    json runs = json::array();
    std::string text;
    const auto cancel_after = request.value("cancel_after", -1);
    options.on_run_or_stop = [&](const specplug::Run& run) {
      runs.push_back({run.count, run.accepted});
      text += run.text;
      return static_cast<int>(runs.size()) != cancel_after;
    };
    const auto result = decoder->generate(request.at("prompt").get<specplug::Tokens>(), options);
    return {{"tokens", result.tokens},
            {"runs", runs},
            {"text", text},
            {"stats", stats_of(result.stats)}};
  }

  // The same request from many threads at once, a decoder each; how many answers differ.
  json threads(const json& request) {
    const auto options = options_of(request);
    const auto prompt = request.at("prompt").get<specplug::Tokens>();
    const auto wanted = make_decoder(request).generate(prompt, options).tokens;
    std::vector<std::thread> workers;
    std::vector<int> different(request.at("threads").get<std::size_t>());
    for (auto& count : different) {
      workers.emplace_back([&] {
        auto decoder = make_decoder(request);
        for (int i = 0; i < request.at("requests").get<int>(); ++i) {
          count += decoder.generate(prompt, options).tokens != wanted;
        }
      });
    }
    for (auto& worker : workers) worker.join();
    return different;
  }

  std::unique_ptr<Open> opened_;
};

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  Session session;
  for (std::string line; std::getline(std::cin, line);) {
    json reply;
    const auto started = std::chrono::steady_clock::now();
    try {
      reply["result"] = session.answer(json::parse(line));
    } catch (const specplug::Error& error) {
      reply = {{"error", error.what()}, {"status", error.status()}};
    } catch (const std::bad_alloc&) {
      reply = {{"error", "no memory"}, {"status", SPECPLUG_ERROR_OUT_OF_MEMORY}};
    } catch (const std::exception& error) {
      reply = {{"error", error.what()}, {"status", -1}};
    }
    reply["seconds"] =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    std::cout << reply.dump(-1, ' ', false, json::error_handler_t::replace) << '\n' << std::flush;
  }
}
