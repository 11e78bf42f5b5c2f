// Texts of earlier requests, for lookup: bounded, apart by tenant, and never part of an answer.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "suffix_automaton.hpp"

namespace specplug::native {

// Texts are written into the newest of a tenant's two automata. When that is half of what the tenant
// may have, the older one is dropped. A tenant may have what the others leave, and an equal share at
// least: when all together have too much, one that has more than its share loses its older automaton,
// first the one that wrote the longest ago. So no tenant can make another one forget texts that fit in
// its share. Of more than 256 tenants the one that wrote the longest ago is forgotten.
class History {
 public:
  using Text = std::shared_ptr<SuffixAutomaton>;

  explicit History(std::size_t most_tokens) : most_tokens_(most_tokens) {}

  std::mutex& lock() { return lock_; }  // to be held while automata are read

  // A tenant's automata, the newest first.
  std::vector<Text> texts(const std::string& tenant);

  // Remember a text, its end if it is longer than what may be kept.
  void add(const std::string& tenant, const std::vector<std::int64_t>& tokens);

 private:
  struct Tenant {
    std::string name;
    std::vector<Text> texts;  // the oldest first
  };

  std::list<Tenant>::iterator find(const std::string& tenant);
  static std::size_t kept(const Tenant& tenant);  // tokens
  std::size_t kept() const;                       // tokens of all tenants

  std::mutex lock_;
  std::size_t most_tokens_;
  std::list<Tenant> tenants_;  // who wrote the longest ago first
};

}  // namespace specplug::native
