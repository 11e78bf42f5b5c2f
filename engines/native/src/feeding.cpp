#include "feeding.hpp"

namespace specplug::native {

Scores feed(Engine& engine, std::vector<std::int64_t> tokens, std::int64_t past, std::size_t scored,
            const std::vector<std::int32_t>* parents, const std::atomic<bool>* cancelled) {
  std::size_t done = 0;
  while (tokens.size() - done - scored >= kPrefillWidth) {
    if (cancelled && *cancelled) throw Cancelled();
    engine.forward({tokens.data() + done, kPrefillWidth, past, kPrefillWidth - 1, nullptr});
    done += kPrefillWidth;
    past += static_cast<std::int64_t>(kPrefillWidth);
  }
  if (cancelled && *cancelled) throw Cancelled();
  const auto width = tokens.size() - done;
  const auto scores_from = width - scored;
  const auto padded = std::max(width, static_cast<std::size_t>(engine.graph().min_width()));
  tokens.resize(done + padded, tokens.back());
  std::vector<std::int32_t> tree;
  if (parents) {
    const auto chain = static_cast<std::int32_t>(width - parents->size());
    for (std::int32_t node = 0; node < chain; ++node) tree.push_back(node - 1);
    for (const auto parent : *parents) tree.push_back(chain + parent);
    while (tree.size() < padded) tree.push_back(static_cast<std::int32_t>(tree.size()) - 1);
  }
  return engine.forward(
      {tokens.data() + done, padded, past, scores_from, parents ? tree.data() : nullptr});
}

}  // namespace specplug::native
