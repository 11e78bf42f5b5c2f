// The cache of one sequence: one block of host memory that grows.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "manifest.hpp"

namespace specplug::native {

// Keys and values of all layers, which a draft of the same model may share.
class KeyValues {
 public:
  KeyValues(const CacheLayout& layout, std::int64_t longest);

  const CacheLayout& layout() const { return layout_; }
  std::int64_t entries() const { return capacity_ + kSpare; }  // a head has, spare one included
  std::int64_t generation() const { return generation_; }  // another one once the memory moved

  // Those of a layer; kind 0: keys, 1: values. [1, heads, entries, head_size]
  unsigned char* at(std::int64_t layer, int kind);
  std::size_t bytes_each() const;

  std::int64_t longest() const { return longest_; }  // sequence that it can hold

  // Throws Error(ENGINE) for more entries than that.
  void make_room(std::int64_t length);

  // Make the entries from one on what they were at first.
  void clear(std::int64_t from);

  // Move the entries past + node of a tree's accepted path together, to past, past + 1, …
  void keep(std::int64_t past, const std::vector<std::int64_t>& nodes);

 private:
  static constexpr std::int64_t kFirst = 512;  // entries; doubled when outgrown
  static constexpr std::int64_t kSpare = 1;    // for graphs that pad their attention

  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  using Memory = std::unique_ptr<unsigned char, Free>;

  Memory allocate(std::int64_t capacity) const;
  std::size_t entry_bytes() const;
  std::size_t blocks() const;  // of `entries` entries, one after the other

  CacheLayout layout_;
  std::int64_t longest_;
  std::int64_t capacity_;
  std::int64_t generation_ = 0;
  std::int64_t used_ = 0;  // entries that may not be what they were at first
  Memory memory_;
};

}  // namespace specplug::native
