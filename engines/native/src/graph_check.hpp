// What an .onnx file refers to, read without ONNX Runtime: operator domains and data files.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace specplug::native {

struct References {
  std::set<std::string> domains;
  std::vector<std::map<std::string, std::string>> external;  // per tensor that is kept elsewhere
};

// Throws Error(BUNDLE): not protobuf, truncated, or nested too deeply.
References read_references(std::string_view graph);

// Refuse a graph that needs foreign operators, or data outside its own folder; as in Python, before
// anything of a bundle reaches ONNX Runtime.
void check_graph(const std::string& path);

}  // namespace specplug::native
