#include "engine.hpp"

#include <algorithm>
#include <cmath>

#include "clock.hpp"
#include "error.hpp"
#include "visibility.hpp"

namespace specplug::native {
namespace {

constexpr std::size_t kKeptBindings = 64;  // by shape of call; prompts' odd widths come and go
const std::string kBias = "attention_bias";
const std::string kMask = "attention_mask";

ONNXTensorElementDataType type_of(const CacheLayout& layout) {
  if (layout.dtype == "float16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  if (layout.dtype == "bfloat16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

bool is_mask(const std::string& input) { return input.rfind(kMask, 0) == 0; }

// How many tokens the layers see that read this mask; 0: all.
std::int64_t window_of(const std::string& mask) {
  if (mask == kMask || mask == kBias) return 0;
  const auto digits = mask.substr(kMask.size() + 1);
  if (digits.empty() || digits.size() > 9 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    damaged("the graph's input ", mask, " is not one that this engine feeds");
  }
  return std::stoll(digits);
}

}  // namespace

Graph::Graph(const Environment& environment, const std::string& path, const Component& component,
             const SessionSettings& settings, bool allow_narrow)
    : component_(component),
      narrow_(allow_narrow),
      session_(open_session(environment, path, settings)) {
  std::size_t count = 0;
  OrtAllocator* allocator = nullptr;
  check_ort(ort().GetAllocatorWithDefaultOptions(&allocator), "reading inputs");
  check_ort(ort().SessionGetInputCount(session_.get(), &count), "reading inputs");
  for (std::size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check_ort(ort().SessionGetInputName(session_.get(), i, allocator, &name), "reading inputs");
    inputs_.insert(name);
    allocator->Free(allocator, name);
  }
  check_outputs();
}

// Refuse a graph whose logits are not those of vocab_size tokens, where it says so.
void Graph::check_outputs() const {
  const auto info = made_by<TypeInfoHandle>("reading outputs", [&](OrtTypeInfo** made) {
    return ort().SessionGetOutputTypeInfo(session_.get(), 0, made);
  });
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  check_ort(ort().CastTypeInfoToTensorInfo(info.get(), &tensor), "reading outputs");
  std::size_t rank = 0;
  if (tensor) check_ort(ort().GetDimensionsCount(tensor, &rank), "reading outputs");
  if (rank != 3) return;  // the output is not the logits: binding them will tell
  std::int64_t shape[3];
  check_ort(ort().GetDimensions(tensor, shape, rank), "reading outputs");
  if (shape[2] > 0 && shape[2] != component_.vocab_size) {
    fail(SPECPLUG_ERROR_ENGINE, "the graph has ", shape[2], " logits a token, its description ",
         component_.vocab_size);
  }
}

Engine::Engine(std::shared_ptr<const Graph> graph, std::shared_ptr<KeyValues> cache,
               std::vector<std::int64_t> layers, bool shares_cache)
    : graph_(std::move(graph)),
      cache_(std::move(cache)),
      layers_(std::move(layers)),
      shares_cache_(shares_cache) {}

Scores Engine::forward(const Step& step) {
  check(step);
  cache_->make_room(step.past + static_cast<std::int64_t>(step.width));
  if (generation_ != cache_->generation()) forget_bindings();
  const auto scored = step.width - step.scores_from;
  if (logits_.size() < scored * vocab()) {
    forget_bindings();
    logits_.resize(scored * vocab());
  }
  auto& bound = binding({step.width, scored, step.parents != nullptr});
  fill(bound, step);
  const double started = now();
  check_ort(ort().RunWithBinding(graph_->session(), nullptr, bound.io.get()), "running the graph");
  seconds_ += now() - started;
  return {logits_.data(), scored, vocab()};
}

void Engine::check(const Step& step) const {
  const auto& component = graph_->component();
  const auto end = step.past + static_cast<std::int64_t>(step.width);
  if (end > max_length()) {
    fail(SPECPLUG_ERROR_ENGINE, step.past, " cached + ", step.width,
         " new tokens exceed max_length ", max_length());
  }
  for (std::size_t i = 0; i < step.width; ++i) {
    if (step.tokens[i] < 0 || step.tokens[i] >= component.vocab_size) {
      fail(SPECPLUG_ERROR_ENGINE, "token id ", step.tokens[i], " is outside the vocabulary of ",
           component.vocab_size);
    }
  }
}

void Engine::forget_bindings() {
  bindings_.clear();
  order_.clear();
  if (generation_ == cache_->generation()) return;
  cache_values_.clear();
  const auto& layout = cache_->layout();
  for (const auto layer : layers_) {
    for (const int kind : {0, 1}) {
      cache_values_.push_back(tensor_over(cache_->at(layer, kind), cache_->bytes_each(),
                                          {1, layout.heads, cache_->entries(), layout.head_size},
                                          type_of(layout)));
    }
  }
  generation_ = cache_->generation();
}

Engine::Binding& Engine::binding(const Shape& shape) {
  const auto found = bindings_.find(shape);
  if (found != bindings_.end()) return *found->second;
  auto made = bind(shape);
  if (order_.size() == kKeptBindings) {
    bindings_.erase(order_.front());
    order_.erase(order_.begin());
  }
  order_.push_back(shape);
  return *(bindings_[shape] = std::move(made));
}

std::unique_ptr<Engine::Binding> Engine::bind(const Shape& shape) {
  const auto [width, scored, tree] = shape;
  const auto tokens = static_cast<std::int64_t>(width);
  const auto entries = cache_->entries();
  auto made = std::make_unique<Binding>();
  made->io = made_by<IoBindingHandle>("binding inputs", [&](OrtIoBinding** io) {
    return ort().CreateIoBinding(graph_->session(), io);
  });
  auto* io = made->io.get();
  made->tokens.resize(width);
  made->positions.resize(width);

  const auto bind_input = [&](const std::string& name, ValueHandle value) {
    check_ort(ort().BindInput(io, name.c_str(), value.get()), text_of("binding ", name));
    made->values.push_back(std::move(value));
  };
  const auto bind_numbers = [&](const std::string& name, auto* data, std::size_t count,
                                const std::vector<std::int64_t>& dimensions) {
    if (!graph_->takes(name)) return;
    using Number = std::remove_pointer_t<decltype(data)>;
    constexpr auto type = sizeof(Number) == 8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
                                              : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    bind_input(name, tensor_over(data, count * sizeof(Number), dimensions, type));
  };
  bind_numbers("input_ids", made->tokens.data(), width, {1, tokens});
  bind_numbers("position_ids", made->positions.data(), width, {1, tokens});
  bind_numbers("scores_from", &made->scores_from, 1, {1});
  bind_numbers("seqlens_k", &made->seqlens_k, 1, {1});
  bind_numbers("query_seqlens", &made->query_seqlens, 1, {1});
  bind_numbers("total_sequence_length", &made->total_length, 1, {});
  bind_numbers("attention_rows", &made->attention_rows, 1, {});
  bind_numbers("write_indices", &made->write_index, 1, {1});
  made->attention_rows = graph_->narrow() ? 1 : 2;

  const auto size = width * static_cast<std::size_t>(entries);
  const auto bind_mask = [&](const std::string& name, std::vector<float>& mask) {
    if (mask.size() < size) mask.resize(size);
    bind_input(name, tensor_over(mask.data(), size * sizeof(float), {1, 1, tokens, entries},
                                 ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
  };
  for (const auto& input : graph_->inputs()) {
    if (graph_->standard() ? is_mask(input) : input == kBias && tree) {
      bind_mask(input, made->masks[input]);
    } else if (input == kBias) {
      // Other shapes may be bound to these zeros: they are made once, for the widest of calls.
      if (no_bias_.size() < size) {
        forget_bindings();
        no_bias_.assign(size, 0.0F);
      }
      bind_mask(input, no_bias_);
    }
  }
  for (std::size_t i = 0; i < cache_values_.size(); ++i) {
    const auto place = text_of(i / 2, i % 2 ? ".value" : ".key");
    auto* value = cache_values_[i].get();
    check_ort(ort().BindInput(io, ("past_key_values." + place).c_str(), value), "binding the cache");
    check_ort(ort().BindOutput(io, ("present." + place).c_str(), value), "binding the cache");
  }
  auto logits = tensor_over(logits_.data(), scored * vocab() * sizeof(float),
                            {1, static_cast<std::int64_t>(scored), graph_->component().vocab_size},
                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  check_ort(ort().BindOutput(io, "logits", logits.get()), "binding the logits");
  made->values.push_back(std::move(logits));
  return made;
}

void Engine::fill(Binding& binding, const Step& step) const {
  std::copy_n(step.tokens, step.width, binding.tokens.data());
  binding.scores_from = static_cast<std::int64_t>(step.scores_from);
  const auto visibility = Visibility(step.past, step.width, step.parents);
  visibility.positions(binding.positions.data());
  for (auto& [name, mask] : binding.masks) {
    visibility.fill(mask.data(), cache_->entries(), window_of(name));
  }
  const auto end = static_cast<std::int32_t>(step.past) + static_cast<std::int32_t>(step.width);
  binding.write_index = step.past;
  binding.seqlens_k = end - 1;
  binding.query_seqlens = static_cast<std::int32_t>(step.width);
  binding.total_length =
      graph_->takes(kBias) ? static_cast<std::int32_t>(cache_->entries()) : end;
}

}  // namespace specplug::native
