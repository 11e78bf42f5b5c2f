// What ONNX Runtime alone takes: bare BUNDLE TOKENS. A session over the bundle's target as the
// library opens it, the bundle unchecked; a call of eight tokens, then calls of one. Prints, in JSON,
// the seconds to the end of the first call, and resident memory at the end.
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>

#include "engine.hpp"
#include "machine.hpp"

using namespace specplug::native;

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const std::string folder = arguments[1];
  const auto started = std::chrono::steady_clock::now();
  std::ifstream stream(folder + "/specplug.json");
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  const auto target = parse_manifest(text).target;
  const Environment environment(0);
  const auto graph = std::make_shared<const Graph>(
      environment, folder + "/" + target.graph, target, SessionSettings{physical_cores(), {}}, false);
  std::vector<std::int64_t> layers(static_cast<std::size_t>(target.cache.layers));
  std::iota(layers.begin(), layers.end(), 0);
  Engine engine(graph, std::make_shared<KeyValues>(target.cache, target.max_length), layers, false);
  std::vector<std::int64_t> tokens{1, 2, 3, 4, 5, 6, 7, 8};
  engine.forward({tokens.data(), 8, 0, 7, nullptr});
  const std::chrono::duration<double> first = std::chrono::steady_clock::now() - started;
  const auto width = static_cast<std::size_t>(graph->min_width());
  for (int i = 0; i < std::stoi(arguments[2]); ++i) {
    engine.forward({tokens.data(), width, 8 + i, 0, nullptr});
  }
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line) && line.rfind("VmRSS:", 0) != 0) {
  }
  std::cout << "{\"seconds\": " << first.count() << ", \"resident\": "
            << std::stoll(line.substr(6)) * 1024 << "}\n";
}
