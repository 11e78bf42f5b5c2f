#include "graph_check.hpp"

#include <filesystem>
#include <fstream>
#include <limits>

#include "error.hpp"

namespace specplug::native {
namespace {

namespace fs = std::filesystem;

constexpr int kDeepest = 32;  // graphs inside attributes of nodes of graphs…
constexpr std::int64_t kMostFields = 5'000'000;  // some seconds' worth
constexpr std::uintmax_t kLargest = std::uintmax_t{1} << 31;  // protobuf's own limit

struct Field {
  std::uint64_t number = 0;
  bool has_content = false;
  std::string_view content;  // of length-delimited ones
};

class Walk {
 public:
  References found;

  void model(std::string_view message) {
    each(message, 0, [&](const Field& field) {
      switch (field.number) {
        case 7: return graph(field.content, 0);
        case 8: return opset(field.content);
        case 20: return training(field.content, 0);
        case 25: return function(field.content, 0);
      }
    });
  }

 private:
  // Field numbers are those of ONNX's onnx.proto.
  template <typename Visit>
  void each(std::string_view message, int depth, Visit visit) {
    if (depth > kDeepest) damaged("more than ", kDeepest, " graphs inside one another");
    while (!message.empty()) {
      const auto field = next(message);
      if (field.has_content) visit(field);
    }
  }

  Field next(std::string_view& message) {
    if (++fields_ > kMostFields) damaged("it has more than ", kMostFields, " fields");
    const auto tag = varint(message);
    Field field;
    field.number = tag >> 3;
    std::uint64_t skipped = 0;
    switch (tag & 7) {
      case 0: varint(message); break;
      case 1: skipped = 8; break;
      case 2:
        skipped = varint(message);
        field.has_content = true;
        break;
      case 5: skipped = 4; break;
      default: damaged("wire type ", tag & 7);
    }
    if (field.number == 0 || skipped > message.size()) damaged("a field is cut short");
    field.content = message.substr(0, skipped);
    message.remove_prefix(skipped);
    return field;
  }

  static std::uint64_t varint(std::string_view& message) {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (message.empty()) damaged("a number is cut short");
      const auto byte = static_cast<unsigned char>(message.front());
      message.remove_prefix(1);
      if (shift < 64) value |= std::uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    damaged("a number without end");
  }

  void opset(std::string_view message) {
    each(message, 0, [&](const Field& field) {
      if (field.number == 1) found.domains.emplace(field.content);
    });
  }

  void training(std::string_view message, int depth) {
    each(message, depth + 1, [&](const Field& field) {
      if (field.number == 1 || field.number == 2) graph(field.content, depth + 1);
    });
  }

  void function(std::string_view message, int depth) {
    each(message, depth + 1, [&](const Field& field) {
      switch (field.number) {
        case 7: return node(field.content, depth + 1);
        case 9: return opset(field.content);
        case 10: found.domains.emplace(field.content); return;
        case 11: return attribute(field.content, depth + 1);
      }
    });
  }

  void graph(std::string_view message, int depth) {
    each(message, depth + 1, [&](const Field& field) {
      switch (field.number) {
        case 1: return node(field.content, depth + 1);
        case 5: return tensor(field.content);
        case 15: return sparse(field.content, depth + 1);
      }
    });
  }

  void node(std::string_view message, int depth) {
    each(message, depth, [&](const Field& field) {
      if (field.number == 7) found.domains.emplace(field.content);
      if (field.number == 5) attribute(field.content, depth);
    });
  }

  void attribute(std::string_view message, int depth) {
    each(message, depth, [&](const Field& field) {
      switch (field.number) {
        case 5: case 10: return tensor(field.content);
        case 6: case 11: return graph(field.content, depth);
        case 22: case 23: return sparse(field.content, depth);
      }
    });
  }

  void sparse(std::string_view message, int depth) {
    each(message, depth, [&](const Field& field) {
      if (field.number == 1 || field.number == 2) tensor(field.content);
    });
  }

  void tensor(std::string_view message) {
    std::map<std::string, std::string> entry;
    each(message, 0, [&](const Field& field) {
      if (field.number != 13) return;
      std::string key;
      std::string value;
      each(field.content, 0, [&](const Field& part) {
        if (part.number == 1) key = part.content;
        if (part.number == 2) value = part.content;
      });
      entry[key] = value;
    });
    if (!entry.empty()) found.external.push_back(std::move(entry));
  }

  std::int64_t fields_ = 0;
};

std::uintmax_t size_inside(const fs::path& graph, const std::string& location) {
  const auto folder = graph.parent_path();
  const fs::path relative = location;
  if (location.empty() || location.find('\0') != std::string::npos || relative.is_absolute() ||
      relative != relative.filename() || location == ".." || location == "." ||
      fs::weakly_canonical(folder / relative).parent_path() != fs::weakly_canonical(folder)) {
    damaged(graph.filename().string(), " keeps weights in '", location, "', outside its own folder");
  }
  if (!fs::is_regular_file(folder / relative)) {
    damaged(graph.filename().string(), " keeps weights in '", location, "', which is missing");
  }
  return fs::file_size(folder / relative);
}

std::uintmax_t number_of(const std::map<std::string, std::string>& entry, const char* name,
                         const std::string& graph) {
  const auto found = entry.find(name);
  if (found == entry.end()) return 0;
  const auto& digits = found->second;
  if (digits.empty() || digits.size() > 18 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    damaged(graph, " has external data without numbers: ", name, " '", digits, "'");
  }
  return std::stoull(digits);
}

}  // namespace

References read_references(std::string_view graph) {
  if (graph.empty()) damaged("the file is empty");
  Walk walk;
  walk.model(graph);
  return std::move(walk.found);
}

void check_graph(const std::string& path) {
  const fs::path graph = path;
  const auto name = graph.filename().string();
  if (fs::file_size(graph) > kLargest) damaged(name, " is larger than a graph can be");
  std::ifstream stream(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(stream), {}};
  if (!stream) damaged(name, " cannot be read");
  References found;
  try {
    found = read_references(content);
  } catch (const Error& error) {
    damaged(name, " is not a readable ONNX graph: ", error.what());
  }
  for (const auto& domain : found.domains) {
    if (domain != "" && domain != "ai.onnx" && domain != "com.microsoft" &&
        domain != "specplug") {
      damaged(name, " has operators of the domain '", domain,
              "': only ONNX's own, com.microsoft's and ours are run");
    }
  }
  std::map<std::string, std::uintmax_t> sizes;
  for (const auto& entry : found.external) {
    const auto at = entry.find("location");
    const auto location = at == entry.end() ? "" : at->second;
    if (sizes.find(location) == sizes.end()) sizes[location] = size_inside(graph, location);
    const auto offset = number_of(entry, "offset", name);
    const auto length = number_of(entry, "length", name);
    if (offset + length > sizes[location]) {
      damaged(name, " wants bytes ", offset, " to ", offset + length, " of '", location,
              "', which has ", sizes[location]);
    }
  }
}

}  // namespace specplug::native
