#include "suffix_automaton.hpp"

#include <algorithm>
#include <tuple>

namespace specplug::native {
namespace {

constexpr std::int32_t kRoot = 0;
constexpr int kCounted = 12;  // contexts a token, longest first, whose occurrences are counted
constexpr std::size_t kMostBranches = 48;  // a context with more continuations tells nothing

template <typename Edges>
auto edge_at(Edges& edges, std::int64_t token) {
  return std::lower_bound(edges.begin(), edges.end(), token,
                          [](const auto& edge, std::int64_t wanted) { return edge.token < wanted; });
}

}  // namespace

std::int32_t SuffixAutomaton::add_state(std::int64_t length, std::int32_t link,
                                        std::int64_t count) {
  states_.push_back({{}, link, length, count});
  return static_cast<std::int32_t>(states_.size() - 1);
}

std::int32_t SuffixAutomaton::next_of(std::int32_t state, std::int64_t token) const {
  const auto& edges = at(state).next;
  const auto found = edge_at(edges, token);
  return found != edges.end() && found->token == token ? found->to : -1;
}

void SuffixAutomaton::set_next(std::int32_t state, std::int64_t token, std::int32_t to) {
  auto& edges = at(state).next;
  const auto found = edge_at(edges, token);
  if (found != edges.end() && found->token == token) {
    found->to = to;
  } else {
    edges.insert(found, {token, to});
  }
}

void SuffixAutomaton::extend(std::int64_t token) {
  const auto made = add_state(at(last_).length + 1, kRoot, 0);
  auto state = last_;
  while (state >= 0 && next_of(state, token) < 0) {
    set_next(state, token, made);
    state = at(state).link;
  }
  if (state >= 0) {
    const auto link = context_with(state, token);
    at(made).link = link;
  }
  last_ = state = made;
  for (int counted = 0; counted < kCounted; ++counted) {
    ++at(state).count;
    state = at(state).link;
    if (state <= kRoot) break;
  }
  ++tokens_;
}

// The state of `state`'s longest context with a token after it, split off if need be.
std::int32_t SuffixAutomaton::context_with(std::int32_t state, std::int64_t token) {
  const auto found = next_of(state, token);
  if (at(found).length == at(state).length + 1) return found;
  const auto split = add_state(at(state).length + 1, at(found).link, at(found).count);
  at(split).next = at(found).next;
  at(found).link = split;
  while (state >= 0 && next_of(state, token) == found) {
    set_next(state, token, split);
    state = at(state).link;
  }
  return split;
}

SuffixAutomaton::Place SuffixAutomaton::end() const {
  const auto state = std::max(at(last_).link, kRoot);
  return {state, at(state).length};
}

SuffixAutomaton::Place SuffixAutomaton::step(Place place, std::int64_t token) const {
  auto [state, matched] = place;
  while (state > kRoot && at(at(state).link).length >= matched) {
    state = at(state).link;  // split since the place was taken
  }
  auto next = next_of(state, token);
  while (next < 0) {
    state = at(state).link;
    if (state < 0) return {};
    matched = at(state).length;
    next = next_of(state, token);
  }
  return {next, matched + 1};
}

std::vector<SuffixAutomaton::Continuation> SuffixAutomaton::continuations(Place place) const {
  auto [state, matched] = place;
  while (at(state).next.empty()) {  // the text's very end
    state = at(state).link;
    if (state <= kRoot) return {};
    matched = at(state).length;
  }
  const auto& edges = at(state).next;
  if (state == kRoot || edges.size() > kMostBranches) return {};
  std::vector<std::tuple<std::int64_t, std::int32_t, std::int64_t>> found;
  std::int64_t total = 0;
  for (const auto& edge : edges) {
    found.emplace_back(at(edge.to).count, edge.to, edge.token);
    total += at(edge.to).count;
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<Continuation> continuations;
  continuations.reserve(found.size());
  for (const auto& [times, target, token] : found) {
    continuations.push_back({token, times, total, matched});
  }
  return continuations;
}

}  // namespace specplug::native
