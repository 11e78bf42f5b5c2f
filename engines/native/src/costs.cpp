#include "costs.hpp"

#include <algorithm>
#include <vector>

#include "clock.hpp"
#include "feeding.hpp"

namespace specplug::native {
namespace {

constexpr std::int64_t kWidths[] = {1, 16, 4, 8, 32, 2, 12, 6, 24, 3};  // by what they tell
constexpr double kSeconds = 0.7;
constexpr std::size_t kCalls = 7;  // of a width, at most
constexpr std::size_t kLeast = 2;  // widths that are measured however long it takes
constexpr double kSlow = 0.25;     // seconds of a call of which setting up is a small part
constexpr std::int64_t kPast = 16;
constexpr std::size_t kWidest = 32;

}  // namespace

std::map<std::int64_t, double> measure_costs(Engine& engine) {
  const auto& graph = engine.graph();
  const auto past = std::min(kPast, graph.context_limit() / 2);
  std::vector<std::int64_t> tokens(kWidest);
  std::uint64_t random = 0;
  for (auto& token : tokens) {  // which ones does not matter
    random = random * 6364136223846793005U + 1442695040888963407U;
    token = static_cast<std::int64_t>((random >> 33) % engine.vocab());
  }
  const auto call = [&](std::int64_t width) {
    const auto padded = static_cast<std::size_t>(std::max(width, graph.min_width()));
    const double started = now();
    auto scores = engine.forward({tokens.data(), padded, past, 0, nullptr});
    for (std::size_t row = 0; row < scores.rows(); ++row) scores.best(row);
    return now() - started;
  };
  if (past) feed(engine, {tokens.begin(), tokens.begin() + past}, 0, 1);

  std::vector<std::int64_t> ready;
  std::map<std::int64_t, std::vector<double>> taken;
  const double deadline = now() + kSeconds;
  for (const auto width : kWidths) {
    if (width > 1 && past + width > graph.context_limit()) continue;
    const double first = call(width);  // sets the shape up
    ready.push_back(width);
    if (first > kSlow) taken[width].push_back(first);
    if (now() > deadline && ready.size() >= kLeast) break;
  }
  for (std::size_t repeat = 0; repeat < kCalls; ++repeat) {
    for (std::size_t number = 0; number < ready.size(); ++number) {
      if (now() > deadline && (repeat || number >= kLeast)) break;
      taken[ready[number]].push_back(call(ready[number]));
    }
  }
  // Of a busy machine the lower quartile tells more: a call is never quicker than it can be.
  std::map<std::int64_t, double> found;
  for (auto& [width, seconds] : taken) {
    std::sort(seconds.begin(), seconds.end());
    found[width] = seconds[seconds.size() / 4];
  }
  return found;
}

}  // namespace specplug::native
