// A small HTTP service: service BUNDLE [PORT [DECODERS]], on this machine alone.
//
//   curl -N localhost:8080/generate -d '{"prompt": "Once upon a time", "max_tokens": 64}'
//
// answers with a line of JSON for each run of tokens as it is accepted, and one of figures. One set
// of weights serves all decoders; whoever hangs up ends his answer within a round.
#include <condition_variable>
#include <httplib.h>
#include <iostream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <specplug/specplug.hpp>

using nlohmann::json;

namespace {

// Decoders that wait for work. Each has a cache of its own.
class Pool {
 public:
  Pool(const specplug::Model& model, int count) {
    for (int i = 0; i < count; ++i) free_.push_back(std::make_unique<specplug::Decoder>(model));
  }

  template <typename Work>
  void with(Work work) {
    std::unique_lock held(lock_);
    freed_.wait(held, [&] { return !free_.empty(); });
    auto decoder = std::move(free_.back());
    free_.pop_back();
    held.unlock();
    try {
      work(*decoder);
    } catch (...) {
      give_back(std::move(decoder));
      throw;
    }
    give_back(std::move(decoder));
  }

 private:
  void give_back(std::unique_ptr<specplug::Decoder> decoder) {
    const std::lock_guard held(lock_);
    free_.push_back(std::move(decoder));
    freed_.notify_one();
  }

  std::mutex lock_;
  std::condition_variable freed_;
  std::vector<std::unique_ptr<specplug::Decoder>> free_;
};

specplug::GenerationOptions options_of(const json& request) {
  specplug::GenerationOptions options;
  options.text = true;
  options.max_tokens = request.value("max_tokens", options.max_tokens);
  options.temperature = request.value("temperature", options.temperature);
  options.top_p = request.value("top_p", options.top_p);
  options.seed = request.value("seed", options.seed);
  options.stop = request.value("stop", options.stop);
  options.tenant = request.value("tenant", options.tenant);
  return options;
}

std::string line(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

// The answer, run by run, into an open response.
bool answer(const specplug::Model& model, Pool& pool, const json& request,
            httplib::DataSink& sink) {
  const auto write = [&](const json& value) {
    const auto text = line(value);
    return sink.write(text.data(), text.size());
  };
  try {
    auto options = options_of(request);
    options.on_run_or_stop = [&](const specplug::Run& run) {
      return write({{"text", run.text}, {"tokens", run.count}, {"accepted", run.accepted}});
    };
    const auto prompt = model.encode(request.at("prompt").get<std::string>());
    pool.with([&](specplug::Decoder& decoder) {
      const auto stats = decoder.generate(prompt, options).stats;
      write({{"new_tokens", stats.new_tokens},
             {"rounds", stats.rounds},
             {"seconds", stats.prefill_seconds + stats.decode_seconds}});
    });
  } catch (const std::exception& error) {
    write({{"error", error.what()}});
  }
  sink.done();
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::cerr << "usage: service BUNDLE [PORT [DECODERS]]\n";
    return 2;
  }
  try {
    const specplug::Model model(arguments[1]);
    Pool pool(model, count > 3 ? std::stoi(arguments[3]) : 2);
    httplib::Server server;
    server.Get("/health", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok\n", "text/plain");
    });
    server.Post("/generate", [&](const httplib::Request& request, httplib::Response& response) {
      const auto asked = json::parse(request.body, nullptr, false);
      if (!asked.is_object() || !asked.contains("prompt") || !asked["prompt"].is_string()) {
        response.status = 400;
        response.set_content(line({{"error", "need JSON with a prompt"}}), "application/json");
        return;
      }
      response.set_chunked_content_provider(
          "application/x-ndjson", [&model, &pool, asked](std::size_t, httplib::DataSink& sink) {
            return answer(model, pool, asked, sink);
          });
    });
    const int wanted = count > 2 ? std::stoi(arguments[2]) : 8080;
    const int port = wanted ? wanted : server.bind_to_any_port("127.0.0.1");
    if (wanted && !server.bind_to_port("127.0.0.1", wanted)) {
      throw std::runtime_error("port " + std::to_string(wanted) + " is taken");
    }
    std::cout << "listening on port " << port << std::endl;
    server.listen_after_bind();
  } catch (const std::exception& error) {
    std::cerr << "service: " << error.what() << '\n';
    return 1;
  }
}
