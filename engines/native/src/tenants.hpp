// What is learnt from texts, apart by tenant and bounded: nobody's drafts tell what others wrote. What
// has no room is forgotten: of a tenant what was noted the longest ago, and of all tenants the one
// that asked the longest ago.
#pragma once

#include <cstddef>
#include <functional>
#include <iterator>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

namespace specplug::native {

constexpr std::size_t kMostTenants = 256;  // whose learnt state is kept at a time

// A mapping of at most so many entries: setting one more drops the one set the longest ago.
template <typename Key, typename Value>
class Recent {
 public:
  explicit Recent(std::size_t most) : most_(most) {}
  Recent(const Recent&) = delete;
  Recent& operator=(const Recent&) = delete;
  Recent(Recent&&) noexcept = default;
  Recent& operator=(Recent&&) noexcept = default;
  ~Recent() = default;

  std::size_t size() const { return places_.size(); }

  // Null: there is none.
  const Value* find(const Key& key) const {
    const auto known = places_.find(key);
    return known == places_.end() ? nullptr : &known->second->second;
  }

  // An entry to be changed, a new one if need be, which is from now on the last to be dropped. There
  // is room for one at least.
  Value& set(const Key& key) {
    const auto known = places_.find(key);
    if (known != places_.end()) {
      entries_.splice(entries_.end(), entries_, known->second);
    } else {
      entries_.emplace_back(key, Value());
      places_[key] = std::prev(entries_.end());
      limit(most_);
    }
    return entries_.back().second;
  }

  void each(const std::function<void(Value&)>& call) {
    for (auto& entry : entries_) call(entry.second);
  }

  // Have room for so many entries from now on, and drop what is beyond.
  void limit(std::size_t most) {
    most_ = most;
    while (entries_.size() > most_) {
      places_.erase(entries_.front().first);
      entries_.pop_front();
    }
  }

 private:
  std::size_t most_;
  std::list<std::pair<Key, Value>> entries_;  // set the longest ago first
  std::unordered_map<Key, typename std::list<std::pair<Key, Value>>::iterator> places_;
};

// A state of each tenant, made when it is first asked for. For one thread at a time.
template <typename State>
class Tenants {
 public:
  using Pointer = std::shared_ptr<State>;  // who has it may use it on after it was forgotten here

  explicit Tenants(std::size_t most = kMostTenants) : states_(most) {}

  std::size_t size() const { return states_.size(); }
  bool knows(const std::string& tenant) const { return states_.find(tenant) != nullptr; }

  void each(const std::function<void(State&)>& call) {
    states_.each([&](const Pointer& state) { call(*state); });
  }

  // A tenant's state, which is from now on the last to be forgotten.
  Pointer of(const std::string& tenant, const std::function<Pointer()>& make) {
    const auto* known = states_.find(tenant);
    auto state = known ? *known : make();
    states_.set(tenant) = state;
    return state;
  }

 private:
  Recent<std::string, Pointer> states_;
};

// A table of each tenant. Each may have an equal share of the entries, which is smaller the more
// tenants there are, so that nobody can crowd out another.
template <typename Key, typename Value>
class Tables {
 public:
  using Table = Recent<Key, Value>;

  explicit Tables(std::size_t entries, std::size_t most = kMostTenants)
      : entries_(entries), most_(most), tables_(most) {}

  std::size_t size() const { return tables_.size(); }

  std::shared_ptr<Table> of(const std::string& tenant) {
    if (!tables_.knows(tenant) && tables_.size() < most_) {
      share_ = entries_ / (tables_.size() + 1);
      tables_.each([this](Table& table) { table.limit(share_); });
    }
    return tables_.of(tenant, [this] { return std::make_shared<Table>(share_); });
  }

 private:
  std::size_t entries_;
  std::size_t most_;
  std::size_t share_ = 0;
  Tenants<Table> tables_;
};

}  // namespace specplug::native
