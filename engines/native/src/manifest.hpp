// specplug.json: what a bundle says of itself, validated field by field.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace specplug::native {

struct File {
  std::string path;  // inside the bundle
  std::int64_t bytes = 0;
  std::string sha256;
};

struct CacheLayout {
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t head_size = 0;
  std::string dtype;
};

struct TokenizerPart {
  File file;
  std::vector<std::int64_t> stop_token_ids;
  std::optional<std::string> chat_template;
};

struct Component {
  std::string engine;
  std::string dialect;
  std::string precision;
  std::string graph;
  std::vector<File> files;
  std::optional<std::string> continuations;
  std::int64_t vocab_size = 0;
  std::int64_t max_length = 0;
  std::int64_t min_width = 0;
  std::optional<std::vector<std::int64_t>> layers;
  bool is_head = false;  // it reads hidden states of the target, which only Python gives it
  std::optional<TokenizerPart> own_tokenizer;  // where its tokens are not the target's
  std::optional<double> tree_difference;
  CacheLayout cache;

  bool exact_trees() const;
};

struct Manifest {
  Component target;
  std::optional<Component> draft;
  std::optional<TokenizerPart> tokenizer;
  std::vector<std::int64_t> stop_token_ids;  // of a bundle without a tokenizer

  std::vector<const File*> all_files() const;
};

// The manifest in a text. Throws Error(BUNDLE) that names the field which is not as it should be.
Manifest parse_manifest(std::string_view text);

// tuning.json: seconds of a target's calls by width, by the cached entries they were measured at.
using MeasuredCosts = std::map<std::int64_t, std::map<std::int64_t, double>>;

struct TuningKey {  // what a record must be of, to count
  std::string machine;
  std::string engine;
  std::string device;
  std::optional<std::int64_t> threads;
  std::string precision;
  std::string graph_sha256;
};

// The costs that a text has for a key; empty if none. Throws Error(BUNDLE).
MeasuredCosts parse_tuning(std::string_view text, const TuningKey& key);

}  // namespace specplug::native
