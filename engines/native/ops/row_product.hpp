// The arithmetic of specplug.RowQuantizedProduct, which knows nothing of ONNX Runtime.
//
// Every result is, bit for bit, that of the plain nodes which define the operator in a graph
// (export/passes/quantize_w8a8.py):
//
//     peak = max|x|;  u8 = QuantizeLinear(x / peak, 1/127, zero 128)
//     y = MatMulIntegerToFloat(u8, weight, peak, scales, zero 128)
//
// Sums of integers are exact in any order; the few float operations are done as there. Made of
// AVX-512 with VNNI: call nothing of this where cpu_is_supported() (operators.hpp) says no.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace specplug_ops {

// The longest sum that 32 bits hold: depth * 255 * 128 < 2^31.
constexpr std::size_t kLongestDepth = 65'000;

// A weight [depth, columns], laid out in panels of 64 columns. A panel is read from its first byte
// to its last: four rows of 64 columns, 256 bytes in which the four of a column are neighbours,
// then the next four rows.
class Weight {
 public:
  // values: i8[depth, columns], row-major; scales: f32[columns], which has to outlive this.
  Weight(const std::int8_t* values, std::size_t depth, std::size_t columns, const float* scales);

  std::size_t depth() const noexcept { return depth_; }
  std::size_t columns() const noexcept { return columns_; }
  std::size_t panels() const noexcept { return (columns_ + kPanel - 1) / kPanel; }
  std::size_t groups() const noexcept { return (depth_ + 3) / 4; }  // of four rows
  const std::int8_t* panel(std::size_t index) const noexcept { return values_.get() + index * groups() * kGroup; }
  const float* scales() const noexcept { return scales_; }
  // What the zero point of 128 adds to a column's sum, negated.
  const std::int32_t* offsets() const noexcept { return offsets_.data(); }

  static constexpr std::size_t kPanel = 64;
  static constexpr std::size_t kGroup = 4 * kPanel;

 private:
  struct Free {
    void operator()(std::int8_t* values) const noexcept;
  };
  std::unique_ptr<std::int8_t[], Free> values_;
  std::size_t depth_;
  std::size_t columns_;
  const float* scales_;
  std::vector<std::int32_t> offsets_;
};

// Activations in 8 bits. Rows begin every `stride` bytes, so that whole registers can be written.
struct Rows {
  std::uint8_t* values;
  float* peaks;  // [count]
  std::size_t count;
  std::size_t stride;

  static std::size_t stride_for(std::size_t depth) noexcept { return (depth + 63) / 64 * 64; }
};

// Round rows [first, last) of x, f32[count, depth].
void quantize(const float* x, std::size_t depth, const Rows& rows, std::size_t first, std::size_t last) noexcept;

// Write one panel's columns of y, f32[rows.count, weight.columns()].
void multiply(const Rows& rows, const Weight& weight, std::size_t panel, float* y) noexcept;

}  // namespace specplug_ops
