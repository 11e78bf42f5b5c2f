// A small HTTP service: service BUNDLE [PORT [DECODERS]], on this machine alone.
//
//   curl -N localhost:8080/generate -d '{"prompt": "Once upon a time", "max_tokens": 64}'
//
// answers with a line of JSON for each run of tokens as it is accepted, and one of figures. One set
// of weights serves all decoders; whoever hangs up ends his answer within a round.
//
// What strangers may send is bounded: bytes, nesting and items of a request, the time in which it
// comes, an answer's tokens and time, connections. Requests to other names than this machine's, or
// from other sites' pages, are refused. What it does not have: TLS, keys, fairness between clients
// (whoever opens all connections keeps others out for as long as their time lasts), and any check of
// "tenant". Where more than one user can reach it, put a proxy with these before it.
#include <chrono>
#include <condition_variable>
#include <httplib.h>
#include <iostream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <specplug/specplug.hpp>

using nlohmann::json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr std::size_t kLargestBody = 1 << 20;     // bytes, unpacked
constexpr std::size_t kLargestHeaders = 64 << 10;  // bytes
constexpr int kDeepest = 8;                        // lists within lists of a request
constexpr std::size_t kMostStops = 16;
constexpr std::size_t kLongestName = 1000;         // bytes of a stop string or a tenant
constexpr std::int64_t kMostTokens = 4096;         // of an answer
constexpr std::size_t kMostConnections = 64;       // more wait in the system's queue
constexpr std::chrono::seconds kToSend{10};        // for a client to send a request
constexpr std::chrono::seconds kToWait{60};        // for a decoder
constexpr std::chrono::seconds kToAnswer{300};     // for an answer, its reading by the client included

// A connection with bounds: httplib's own ends only when nothing comes for a while, however slowly
// it comes, and takes any number of headers.
class Connection : public httplib::Stream {
 public:
  explicit Connection(socket_t socket) : socket_(socket) {}

  bool is_readable() const override { return ready(POLLIN, asked_until_); }
  bool is_writable() const override { return ready(POLLOUT, answered_until_); }

  ssize_t read(char* to, std::size_t size) override {
    if (at_ == held_.size()) {
      if (taken_ > kLargestHeaders + kLargestBody || !is_readable()) return -1;
      held_.resize(4096);
      const auto count = ::recv(socket_, held_.data(), held_.size(), 0);
      held_.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
      at_ = 0;
      if (count <= 0) return count;
      taken_ += held_.size();
    }
    const auto count = std::min(size, held_.size() - at_);
    std::copy_n(held_.data() + at_, count, to);
    at_ += count;
    return static_cast<ssize_t>(count);
  }

  ssize_t write(const char* from, std::size_t size) override {
    if (!is_writable()) return -1;
    return ::send(socket_, from, size, MSG_NOSIGNAL | MSG_DONTWAIT);
  }

  void get_remote_ip_and_port(std::string&, int&) const override {}
  void get_local_ip_and_port(std::string&, int&) const override {}
  socket_t socket() const override { return socket_; }

 private:
  bool ready(short events, Clock::time_point until) const {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now());
    pollfd waited{socket_, events, 0};
    return left.count() > 0 && ::poll(&waited, 1, static_cast<int>(left.count())) > 0;
  }

  socket_t socket_;
  std::string held_;
  std::size_t at_ = 0;
  std::size_t taken_ = 0;
  Clock::time_point asked_until_ = Clock::now() + kToSend;
  Clock::time_point answered_until_ = Clock::now() + kToAnswer;
};

// One request a connection.
class Server : public httplib::Server {
 private:
  bool process_and_close_socket(socket_t socket) override {
    Connection connection(socket);
    bool closed = false;
    const bool answered = process_request(connection, true, closed, nullptr);
    ::shutdown(socket, SHUT_RDWR);
    ::close(socket);
    return answered;
  }
};

// Threads for connections; accepting another one waits until there is a thread for it.
class Threads : public httplib::TaskQueue {
 public:
  void enqueue(std::function<void()> work) override {
    std::unique_lock held(lock_);
    freed_.wait(held, [&] { return busy_ < kMostConnections; });
    ++busy_;
    pool_.enqueue([this, work] {
      work();
      const std::lock_guard done(lock_);
      --busy_;
      freed_.notify_one();
    });
  }
  void shutdown() override { pool_.shutdown(); }

 private:
  std::mutex lock_;
  std::condition_variable freed_;
  std::size_t busy_ = 0;
  httplib::ThreadPool pool_{kMostConnections};
};

// Decoders that wait for work. Each has a cache of its own.
class Pool {
 public:
  Pool(const specplug::Model& model, int count) {
    for (int i = 0; i < count; ++i) free_.push_back(std::make_unique<specplug::Decoder>(model));
  }

  template <typename Work>
  void with(Work work) {
    std::unique_lock held(lock_);
    if (!freed_.wait_for(held, kToWait, [&] { return !free_.empty(); })) {
      throw std::runtime_error("all decoders are busy: ask again later");
    }
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

struct Asked {
  std::string prompt;
  specplug::GenerationOptions options;
};

void require(bool good, const char* message) {
  if (!good) throw std::invalid_argument(message);
}

// What a body asks for. Throws std::invalid_argument and json::exception for nonsense.
Asked asked_by(const std::string& body) {
  bool deep = false;
  // The tree is never copied, since that recurses, and deep values do not get into it.
  const auto shallow = [&](int depth, json::parse_event_t, json&) {
    deep = deep || depth > kDeepest;
    return !deep;
  };
  const auto request = json::parse(body, shallow, false);
  require(!deep, "the JSON is nested too deeply");
  require(request.is_object() && request.contains("prompt") && request["prompt"].is_string(),
          "need JSON with a prompt");
  Asked asked;
  asked.prompt = request["prompt"].get_ref<const std::string&>();
  auto& options = asked.options;
  options.text = true;
  options.max_tokens = request.value("max_tokens", options.max_tokens);
  options.temperature = request.value("temperature", options.temperature);
  options.top_p = request.value("top_p", options.top_p);
  options.seed = request.value("seed", options.seed);
  options.tenant = request.value("tenant", options.tenant);
  if (const auto stop = request.find("stop"); stop != request.end()) {
    require(stop->is_array() && stop->size() <= kMostStops, "stop: at most 16 strings");
    for (const auto& one : *stop) options.stop.push_back(one.get<std::string>());
  }
  require(options.max_tokens <= kMostTokens, "max_tokens: at most 4096");
  require(options.tenant.size() <= kLongestName, "tenant: at most 1000 bytes");
  for (const auto& one : options.stop) {
    require(one.size() <= kLongestName, "stop: at most 1000 bytes each");
  }
  return asked;
}

std::string line(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

// The answer, run by run, into an open response.
bool answer(const specplug::Model& model, Pool& pool, Asked asked, httplib::DataSink& sink) {
  const auto until = Clock::now() + kToAnswer;
  const auto write = [&](const json& value) {
    const auto text = line(value);
    return Clock::now() < until && sink.write(text.data(), text.size());
  };
  try {
    asked.options.on_run_or_stop = [&](const specplug::Run& run) {
      return write({{"text", run.text}, {"tokens", run.count}, {"accepted", run.accepted}});
    };
    const auto prompt = model.encode(asked.prompt);
    pool.with([&](specplug::Decoder& decoder) {
      const auto stats = decoder.generate(prompt, asked.options).stats;
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

// Whether a header's host is this machine: else a page elsewhere has had its own name point here.
bool is_here(std::string host) {
  const auto colon = host.rfind(':');
  if (colon != std::string::npos && host.find_first_not_of("0123456789", colon + 1) == std::string::npos) {
    host.resize(colon);
  }
  return host == "localhost" || host == "127.0.0.1" || host == "[::1]";
}

bool from_here(const httplib::Request& request) {
  if (!is_here(request.get_header_value("Host"))) return false;
  if (!request.has_header("Origin")) return true;  // no page of a browser's
  const auto origin = request.get_header_value("Origin");
  return origin.rfind("http://", 0) == 0 && is_here(origin.substr(7));
}

void refuse(httplib::Response& response, int status, const std::string& why) {
  response.status = status;
  response.set_content(line({{"error", why}}), "application/json");
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
    Server server;
    server.new_task_queue = [] { return new Threads; };
    server.set_pre_routing_handler([](const httplib::Request& request, httplib::Response& response) {
      if (from_here(request)) return Server::HandlerResponse::Unhandled;
      refuse(response, 403, "this service answers to localhost alone");
      return Server::HandlerResponse::Handled;
    });
    server.Get("/health", [](const httplib::Request&, httplib::Response& response) {
      response.set_content("ok\n", "text/plain");
    });
    server.Post("/generate", [&](const httplib::Request& request, httplib::Response& response,
                                 const httplib::ContentReader& read) {
      std::string body;
      const auto add = [&](const char* data, std::size_t size) {  // after unpacking, if it is packed
        if (body.size() + size > kLargestBody) return false;
        body.append(data, size);
        return true;
      };
      if (request.is_multipart_form_data()) return refuse(response, 415, "need JSON, not a form");
      if (!read(add)) return refuse(response, 413, "the body is too large, or did not come");
      try {
        response.set_chunked_content_provider(
            "application/x-ndjson",
            [&model, &pool, asked = asked_by(body)](std::size_t, httplib::DataSink& sink) {
              return answer(model, pool, asked, sink);
            });
      } catch (const std::exception& error) {
        refuse(response, 400, error.what());
      }
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
