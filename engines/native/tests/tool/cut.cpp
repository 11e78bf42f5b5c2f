// Cuts texts as pre_tokenizers of tokenizer.json files do, for tests/test_native_expressions.py. The
// first line of standard input is a list of pre_tokenizers; each one after it is a list of texts,
// answered by a line: for each pre_tokenizer the pieces of each text, or an error.
#include <iostream>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "json.hpp"
#include "pretokenizer.hpp"
#include "unicode.hpp"

using nlohmann::json;
using specplug::native::Pretokenizer;

int main() {
  std::ios::sync_with_stdio(false);
  std::string line;
  std::getline(std::cin, line);
  std::vector<Pretokenizer> cutters;
  std::vector<std::string> errors;
  for (const auto& described : json::parse(line)) {
    try {
      cutters.emplace_back(specplug::native::Json::parse(described.dump(), "pre_tokenizer"));
      errors.emplace_back();
    } catch (const specplug::native::Error& error) {
      errors.emplace_back(error.what());
    }
  }
  std::cout << json(errors).dump() << std::endl;
  while (std::getline(std::cin, line)) {
    json found = json::array();
    for (const auto& cutter : cutters) {
      auto& of_all = found.emplace_back(json::array());
      for (const auto& text : json::parse(line)) {
        of_all.push_back(cutter.pieces(specplug::native::characters(text.get<std::string>())));
      }
    }
    std::cout << found.dump() << std::endl;
  }
}
