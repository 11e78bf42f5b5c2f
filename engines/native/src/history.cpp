#include "history.hpp"

#include <algorithm>

namespace specplug::native {
namespace {

constexpr std::int64_t kBetweenTexts = -1;  // matches no token

}  // namespace

std::list<History::Tenant>::iterator History::find(const std::string& tenant) {
  return std::find_if(tenants_.begin(), tenants_.end(),
                      [&](const Tenant& one) { return one.name == tenant; });
}

std::size_t History::kept() const {
  std::size_t total = 0;
  for (const auto& tenant : tenants_) {
    for (const auto& text : tenant.texts) total += static_cast<std::size_t>(text->tokens());
  }
  return total;
}

std::vector<History::Text> History::texts(const std::string& tenant) {
  const std::lock_guard held(lock_);
  const auto found = find(tenant);
  if (found == tenants_.end()) return {};
  return {found->texts.rbegin(), found->texts.rend()};
}

void History::add(const std::string& tenant, const std::vector<std::int64_t>& tokens) {
  const auto half = most_tokens_ / 2;
  if (!half || tokens.empty()) return;
  const std::lock_guard held(lock_);
  auto found = find(tenant);
  if (found == tenants_.end()) found = tenants_.insert(tenants_.end(), Tenant{tenant, {}});
  tenants_.splice(tenants_.end(), tenants_, found);
  auto& texts = found->texts;
  if (texts.empty() ||
      static_cast<std::size_t>(texts.back()->tokens()) + tokens.size() + 1 > half) {
    texts.push_back(std::make_shared<SuffixAutomaton>());
    if (texts.size() > 2) texts.erase(texts.begin());
  }
  const auto first = tokens.size() > half - 1 ? tokens.size() - (half - 1) : 0;
  for (auto i = first; i < tokens.size(); ++i) texts.back()->extend(tokens[i]);
  texts.back()->extend(kBetweenTexts);
  while (kept() > most_tokens_ && tenants_.size() > 1) tenants_.pop_front();
}

}  // namespace specplug::native
