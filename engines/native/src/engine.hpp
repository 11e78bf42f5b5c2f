// A graph over a cache, behind one call; rolling back is naming a smaller past.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "key_values.hpp"
#include "manifest.hpp"
#include "ort_api.hpp"
#include "scores.hpp"

namespace specplug::native {

// A loaded graph: read-only, shared by all engines over it.
class Graph {
 public:
  Graph(const Environment& environment, const std::string& path, const Component& component,
        const SessionSettings& settings, bool allow_narrow);

  OrtSession* session() const { return session_.get(); }
  bool takes(const std::string& input) const { return inputs_.count(input) > 0; }
  const std::set<std::string>& inputs() const { return inputs_; }
  const Component& component() const { return component_; }
  bool standard() const { return component_.dialect == "standard"; }
  bool takes_trees() const { return standard() || takes("attention_bias"); }
  std::int64_t min_width() const { return narrow_ ? 1 : component_.min_width; }
  bool narrow() const { return narrow_; }
  // Tokens a sequence can have when every call is padded to min_width.
  std::int64_t context_limit() const { return component_.max_length - (min_width() - 1); }

 private:
  void check_outputs() const;

  Component component_;
  bool narrow_;
  SessionHandle session_;
  std::set<std::string> inputs_;
};

struct Step {
  const std::int64_t* tokens;
  std::size_t width;
  std::int64_t past;          // valid cache entries; the call writes the next `width`
  std::size_t scores_from;    // scores are wanted from this token on
  const std::int32_t* parents;  // of each token the one before it, -1: none; null: a chain
};

class Engine {
 public:
  // layers: which of the cache's are the graph's.
  Engine(std::shared_ptr<const Graph> graph, std::shared_ptr<KeyValues> cache,
         std::vector<std::int64_t> layers, bool shares_cache);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const Graph& graph() const { return *graph_; }
  const std::shared_ptr<KeyValues>& cache() const { return cache_; }
  bool shares_cache() const { return shares_cache_; }
  // Tokens that a sequence can have: no more than the cache holds, which may be another graph's.
  std::int64_t max_length() const {
    return std::min(graph_->component().max_length, cache_->longest());
  }
  std::int64_t context_limit() const { return max_length() - (graph_->min_width() - 1); }
  std::size_t vocab() const { return static_cast<std::size_t>(graph_->component().vocab_size); }
  double seconds() const { return seconds_; }  // spent in ONNX Runtime so far

  Scores forward(const Step& step);

 private:
  // One shape of call: inputs that are filled, and the session's binding of them.
  struct Binding {
    IoBindingHandle io;
    std::vector<ValueHandle> values;
    std::vector<std::int64_t> tokens, positions;
    std::int64_t scores_from = 0;
    std::int64_t attention_rows = 2;
    std::int64_t write_index = 0;
    std::int32_t seqlens_k = 0;
    std::int32_t query_seqlens = 0;
    std::int32_t total_length = 0;
    std::map<std::string, std::vector<float>> masks;  // by input, [width, entries]
  };
  using Shape = std::tuple<std::size_t, std::size_t, bool>;  // width, scored, whether a tree

  void check(const Step& step) const;
  Binding& binding(const Shape& shape);
  std::unique_ptr<Binding> bind(const Shape& shape);
  void fill(Binding& binding, const Step& step) const;
  void forget_bindings();

  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<KeyValues> cache_;
  std::vector<std::int64_t> layers_;
  bool shares_cache_;
  std::int64_t generation_ = -1;         // of the cache that cache_values_ are over
  std::vector<ValueHandle> cache_values_;  // key and value by layer
  std::vector<float> logits_;            // of any call: one buffer for all shapes
  std::vector<float> no_bias_;           // zeros, for chains of any shape
  std::map<Shape, std::unique_ptr<Binding>> bindings_;
  std::vector<Shape> order_;             // in which they were made
  double seconds_ = 0;
};

}  // namespace specplug::native
