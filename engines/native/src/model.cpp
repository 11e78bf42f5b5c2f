#include "model.hpp"

#include <algorithm>
#include <future>
#include <iterator>
#include <numeric>
#include <string_view>

#include "costs.hpp"
#include "lookup_sources.hpp"
#include "machine.hpp"
#include "model_source.hpp"

namespace specplug::native {
namespace {

constexpr std::string_view kDrafters[] = {"none",      "ngram", "suffix", "recycle",
                                          "predicted", "draft", "self",   "auto"};

template <std::size_t count>
std::string joined(const std::string_view (&names)[count]) {
  std::string found;
  for (const auto name : names) found += text_of(found.empty() ? "" : ", ", name);
  return found;
}

// How many letters have to be put in, left out or replaced to make one word of another.
std::size_t distance(std::string_view one, std::string_view other) {
  std::vector<std::size_t> row(other.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < one.size(); ++i) {
    std::size_t before = row[0]++;
    for (std::size_t j = 0; j < other.size(); ++j) {
      const auto replaced = before + (one[i] != other[j]);
      before = row[j + 1];
      row[j + 1] = std::min({replaced, before + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::string_view nearest(std::string_view name) {
  return *std::min_element(std::begin(kDrafters), std::end(kDrafters), [&](auto a, auto b) {
    return distance(name, a) < distance(name, b);
  });
}

int threads_of(const ModelOptions& options) {
  return options.threads ? options.threads : physical_cores();
}

std::shared_ptr<const Graph> load(const Environment& environment, const Bundle& bundle,
                                  const Component& component, const ModelOptions& options) {
  if (component.dialect == "concat") {
    fail(SPECPLUG_ERROR_UNSUPPORTED, "a graph that appends to its cache (dialect concat): run it ",
         "from Python, or export the checkpoint itself");
  }
  return std::make_shared<const Graph>(environment, bundle.path(component.graph), component,
                                       SessionSettings{threads_of(options), options.providers},
                                       options.allow_narrow);
}

}  // namespace

Model::Model(const std::string& folder, const ModelOptions& options)
    : options_(options),
      bundle_(folder),
      environment_(options.load_draft ? threads_of(options) : 0),
      history_(std::make_shared<History>(options.history_tokens)) {
  const auto& manifest = bundle_.manifest();
  if (options.load_draft && !manifest.draft) {
    damaged(folder, " holds no draft model: export it with --draft or --self-draft");
  }
  if (options.load_draft && manifest.draft->is_head) {
    fail(SPECPLUG_ERROR_UNSUPPORTED, "the draft of ", folder,
         " is a learned head, which the Python package runs: open the bundle without its draft");
  }
  if (options.load_draft && manifest.draft->own_tokenizer) {
    fail(SPECPLUG_ERROR_UNSUPPORTED, "the draft of ", folder,
         " has a tokenizer of its own, which the Python package translates: open the bundle without "
         "its draft");
  }
  stop_token_ids_ =
      manifest.tokenizer ? manifest.tokenizer->stop_token_ids : manifest.stop_token_ids;
  // Hashing the weights takes about as long as loading them, so the two go on at once. Weights are
  // but numbers: the graph that says what is done with them was checked before.
  auto checked = std::async(std::launch::async, [this] { bundle_.check_weights(); });
  try {
    target_ = load(environment_, bundle_, manifest.target, options);
    if (options.load_draft) draft_ = load(environment_, bundle_, *manifest.draft, options);
  } catch (const Error&) {
    checked.get();  // what was changed is the better explanation
    throw;
  }
  checked.get();
}

const Tokenizer* Model::find_tokenizer() const {
  const std::lock_guard held(lock_);
  const auto& part = bundle_.manifest().tokenizer;
  if (!tokenizer_ && !tokenizer_fault_) {
    try {
      if (!part) {
        fail(SPECPLUG_ERROR_UNSUPPORTED, "this bundle has no tokenizer: pass token ids");
      }
      tokenizer_ = std::make_unique<const Tokenizer>(bundle_.read(part->file.path));
    } catch (const Error& error) {
      tokenizer_fault_ = error;
    }
  }
  return tokenizer_.get();
}

const Tokenizer& Model::tokenizer() const {
  if (const auto* found = find_tokenizer()) return *found;
  throw Error(*tokenizer_fault_);
}

std::unique_ptr<Engine> Model::new_engine(const std::shared_ptr<const Graph>& graph) {
  const auto& component = graph->component();
  std::vector<std::int64_t> layers(static_cast<std::size_t>(component.cache.layers));
  std::iota(layers.begin(), layers.end(), 0);
  auto cache = std::make_shared<KeyValues>(component.cache, component.max_length);
  return std::make_unique<Engine>(graph, std::move(cache), std::move(layers), false);
}

std::shared_ptr<Engine> Model::new_draft_engine(const Engine& target) const {
  const auto& component = draft_->component();
  const auto& own = component.cache;
  const auto& its = target.cache()->layout();
  if (component.layers && own.heads == its.heads && own.head_size == its.head_size &&
      own.dtype == its.dtype) {
    return std::make_shared<Engine>(draft_, target.cache(), *component.layers, true);
  }
  return new_engine(draft_);
}

Model::Guessing Model::guessing(const std::string& drafter, const Engine& target,
                                std::size_t lookup_min, std::size_t lookup_max) const {
  Guessing found;
  auto& made = found.sources;
  const auto recycle = [&] { return recycle_source(bundle_.continuations(), target.vocab()); };
  const auto draft = [&] {
    found.draft = new_draft_engine(target);
    return model_source(found.draft);
  };
  if (drafter == "ngram") {
    made.push_back(ngram_source(lookup_min, lookup_max));
  } else if (drafter == "suffix") {
    made.push_back(suffix_source());
    made.push_back(history_source(history_));
  } else if (drafter == "recycle") {
    made.push_back(recycle());
  } else if (drafter == "predicted") {
    made.push_back(predicted_source());
  } else if (drafter == "draft" || drafter == "self") {
    if (!draft_) damaged("the draft model is not loaded: open the model with load_draft");
    if (drafter == "self" && !draft_->component().layers) {
      damaged("the bundle's draft is not the target itself: export one with --self-draft");
    }
    made.push_back(draft());
  } else if (drafter == "auto") {
    made.push_back(predicted_source());
    made.push_back(suffix_source());
    made.push_back(history_source(history_));
    made.push_back(recycle());
    if (draft_) made.push_back(draft());
  } else if (drafter == "head" || drafter == "universal") {
    fail(SPECPLUG_ERROR_UNSUPPORTED, "drafter ", in_quotes(drafter),
         " runs from Python; this library has ", joined(kDrafters));
  } else if (drafter != "none") {
    const auto near = nearest(drafter);
    const bool meant = 2 * distance(drafter, near) <= std::max(drafter.size(), near.size());
    refuse("drafter ", in_quotes(drafter), " is none of ", joined(kDrafters),
           meant ? text_of(": did you mean ", in_quotes(near), "?") : "");
  }
  return found;
}

CostsByContext Model::costs(Engine& engine) const {
  const std::lock_guard held(lock_);
  if (!costs_) {
    const auto threads =
        options_.threads ? std::optional<std::int64_t>(options_.threads) : std::nullopt;
    auto measured = bundle_.tuned(threads);
    if (measured.empty()) measured[0] = measure_costs(engine);
    costs_.emplace();
    for (const auto& [context, calls] : measured) costs_->emplace(context, CallCosts(calls));
  }
  return *costs_;
}

}  // namespace specplug::native
