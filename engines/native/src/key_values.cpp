#include "key_values.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "error.hpp"

namespace specplug::native {

KeyValues::KeyValues(const CacheLayout& layout, std::int64_t longest)
    : layout_(layout),
      longest_(longest),
      capacity_(std::min(kFirst, longest)),
      memory_(allocate(capacity_)) {}

std::size_t KeyValues::entry_bytes() const {
  return static_cast<std::size_t>(layout_.head_size) * (layout_.dtype == "float32" ? 4 : 2);
}

std::size_t KeyValues::blocks() const {
  return static_cast<std::size_t>(layout_.layers * 2 * layout_.heads);
}

std::size_t KeyValues::bytes_each() const {
  return static_cast<std::size_t>(layout_.heads * entries()) * entry_bytes();
}

unsigned char* KeyValues::at(std::int64_t layer, int kind) {
  return memory_.get() + static_cast<std::size_t>(layer * 2 + kind) * bytes_each();
}

KeyValues::Memory KeyValues::allocate(std::int64_t capacity) const {
  std::size_t bytes = 0;
  const auto entries = static_cast<std::size_t>(capacity + kSpare);
  // Zeros, not garbage: attention multiplies spare entries by 0, and 0 * NaN is NaN. The system
  // gives pages of zeros only when they are touched.
  if (__builtin_mul_overflow(entry_bytes() * entries, blocks(), &bytes)) throw std::bad_alloc();
  Memory memory(static_cast<unsigned char*>(std::calloc(bytes, 1)));
  if (!memory) {
    fail(SPECPLUG_ERROR_OUT_OF_MEMORY, "no memory for a cache of ", capacity, " tokens");
  }
  return memory;
}

void KeyValues::make_room(std::int64_t length) {
  if (length > longest_) {
    fail(SPECPLUG_ERROR_ENGINE, length, " entries: the cache holds ", longest_);
  }
  used_ = std::max(used_, length + kSpare);
  if (length <= capacity_) return;
  auto capacity = capacity_;
  while (capacity < length) capacity *= 2;
  capacity = std::min(capacity, longest_);
  auto grown = allocate(capacity);
  const auto old_block = static_cast<std::size_t>(entries()) * entry_bytes();
  const auto new_block = static_cast<std::size_t>(capacity + kSpare) * entry_bytes();
  for (std::size_t block = 0; block < blocks(); ++block) {
    std::memcpy(grown.get() + block * new_block, memory_.get() + block * old_block, old_block);
  }
  memory_ = std::move(grown);
  capacity_ = capacity;
  ++generation_;
}

void KeyValues::clear(std::int64_t from) {
  if (from >= used_) return;
  const auto block_bytes = static_cast<std::size_t>(entries()) * entry_bytes();
  const auto start = static_cast<std::size_t>(from) * entry_bytes();
  const auto bytes = static_cast<std::size_t>(used_ - from) * entry_bytes();
  for (std::size_t block = 0; block < blocks(); ++block) {
    std::memset(memory_.get() + block * block_bytes + start, 0, bytes);
  }
  used_ = from;
}

void KeyValues::keep(std::int64_t past, const std::vector<std::int64_t>& nodes) {
  const auto entry = entry_bytes();
  const auto block_bytes = static_cast<std::size_t>(entries()) * entry;
  for (std::size_t block = 0; block < blocks(); ++block) {
    auto* from = memory_.get() + block * block_bytes + static_cast<std::size_t>(past) * entry;
    // A node is never before its place, so that what is still to be moved is never overwritten.
    for (std::size_t place = 0; place < nodes.size(); ++place) {
      const auto node = static_cast<std::size_t>(nodes[place]);
      if (node != place) std::memcpy(from + place * entry, from + node * entry, entry);
    }
  }
}

}  // namespace specplug::native
