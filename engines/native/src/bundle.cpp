#include "bundle.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "error.hpp"
#include "graph_check.hpp"
#include "machine.hpp"
#include "sha256.hpp"

namespace specplug::native {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kLargestText = std::uintmax_t{1} << 20;  // manifest, costs
constexpr auto kManifest = "specplug.json";
constexpr auto kTuning = "tuning.json";

}  // namespace

Bundle::Bundle(std::string folder) : folder_(std::move(folder)) {
  std::error_code unreadable;
  if (!fs::is_regular_file(path(kManifest), unreadable)) {
    damaged(folder_, " is not a bundle: it has no ", kManifest, "; make one with specplug export");
  }
  if (fs::file_size(path(kManifest)) > kLargestText) {
    damaged(kManifest, " is larger than ", kLargestText, " bytes: not read");
  }
  manifest_ = parse_manifest(read(kManifest));
  for (const auto* file : manifest_.all_files()) {
    check_extent(*file);
    if (!weights(*file)) check_hash(*file);
  }
  check_graph(path(manifest_.target.graph));
  if (manifest_.draft) check_graph(path(manifest_.draft->graph));
}

std::string Bundle::read(const std::string& name) const {
  std::ifstream stream(path(name), std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(stream), {}};
  if (!stream) damaged(name, " cannot be read");
  return content;
}

void Bundle::check_weights() const {
  for (const auto* file : manifest_.all_files()) {
    if (weights(*file)) check_hash(*file);
  }
}

bool Bundle::weights(const File& file) const {
  const auto is_graph = [&](const Component& component) { return component.graph == file.path; };
  return !is_graph(manifest_.target) && !(manifest_.draft && is_graph(*manifest_.draft)) &&
         !(manifest_.tokenizer && manifest_.tokenizer->file.path == file.path);
}

void Bundle::check_extent(const File& file) const {
  std::error_code unreadable;
  const auto root = fs::weakly_canonical(folder_, unreadable);
  const auto real = fs::weakly_canonical(path(file.path), unreadable);
  if (std::mismatch(root.begin(), root.end(), real.begin(), real.end()).first != root.end()) {
    damaged(file.path, " points outside the bundle: not opened");
  }
  if (!fs::is_regular_file(real, unreadable)) {
    damaged(file.path, " is missing from ", folder_, ": export the model again");
  }
  const auto size = fs::file_size(real);
  if (size != static_cast<std::uintmax_t>(file.bytes)) {
    damaged(file.path, " has ", size, " bytes, the manifest says ", file.bytes);
  }
}

void Bundle::check_hash(const File& file) const {
  const auto digest = file_sha256(path(file.path));
  if (digest != file.sha256) {
    damaged(file.path, " was changed: its SHA-256 is ", digest, ", not ", file.sha256);
  }
}

std::vector<std::int32_t> Bundle::continuations() const {
  const auto& target = manifest_.target;
  if (!target.continuations) return {};
  const auto content = read(*target.continuations);
  std::vector<std::int32_t> values(content.size() / sizeof(std::int32_t));
  std::memcpy(values.data(), content.data(), values.size() * sizeof(std::int32_t));
  const auto unknown = [&](std::int32_t id) { return id < 0 || id >= target.vocab_size; };
  if (values.empty() || values.size() % static_cast<std::size_t>(target.vocab_size) ||
      std::any_of(values.begin(), values.end(), unknown)) {
    damaged(*target.continuations, " is no table of ", target.vocab_size,
            " tokens' continuations");
  }
  return values;
}

MeasuredCosts Bundle::tuned(std::optional<std::int64_t> threads) const {
  try {
    return read_tuned(threads);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "specplug: %s is not used (%s): costs are measured anew\n",
                 path(kTuning).c_str(), error.what());
    return {};
  }
}

MeasuredCosts Bundle::read_tuned(std::optional<std::int64_t> threads) const {
  std::error_code missing;
  const auto kind = fs::status(path(kTuning), missing).type();
  if (kind == fs::file_type::not_found) return {};
  if (kind != fs::file_type::regular) damaged("it is no file that can be read");
  if (fs::file_size(path(kTuning)) > kLargestText) {
    damaged("it is larger than ", kLargestText, " bytes: delete it, or run specplug tune");
  }
  const auto& target = manifest_.target;
  const auto graph =
      std::find_if(target.files.begin(), target.files.end(),
                   [&](const File& file) { return file.path == target.graph; });
  return parse_tuning(read(kTuning), {text_of(cpu_name(), ", ", usable_cores(), " cores"),
                                      "onnxruntime", "cpu", threads, target.precision,
                                      graph->sha256});
}

}  // namespace specplug::native
