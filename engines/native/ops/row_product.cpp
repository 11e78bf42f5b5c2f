#include "row_product.hpp"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace specplug_ops {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr std::size_t kTile = 6;  // rows whose sums fit the registers: 6 * 4 of 32

__mmask16 mask_of(std::size_t left) {
  return left >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1U << left) - 1);
}

// R rows times one panel, over the whole depth.
template <std::size_t R>
void multiply_rows(const Rows& rows, std::size_t first, const Weight& weight, std::size_t panel, float* y) {
  const std::size_t groups = weight.groups(), column = panel * Weight::kPanel;
  const std::int8_t* weights = weight.panel(panel);
  const std::uint8_t* activations = rows.values + first * rows.stride;
  __m512i sums[R][4];
#pragma GCC unroll 6
  for (std::size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) sums[r][i] = _mm512_setzero_si512();
  for (std::size_t group = 0; group < groups; ++group, weights += Weight::kGroup) {
    __m512i four_rows[4];
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) four_rows[i] = _mm512_load_si512(weights + i * 64);
#pragma GCC unroll 6
    for (std::size_t r = 0; r < R; ++r) {
      std::int32_t four;
      std::memcpy(&four, activations + r * rows.stride + group * 4, sizeof four);
      const __m512i same = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (std::size_t i = 0; i < 4; ++i) sums[r][i] = _mm512_dpbusd_epi32(sums[r][i], same, four_rows[i]);
    }
  }
#pragma GCC unroll 6
  for (std::size_t r = 0; r < R; ++r) {
    const __m512 peak = _mm512_set1_ps(rows.peaks[first + r]);
    float* out = y + (first + r) * weight.columns();
#pragma GCC unroll 4
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t at = column + i * 16;
      if (at >= weight.columns()) break;
      const __mmask16 mask = mask_of(weight.columns() - at);
      const __m512i whole = _mm512_add_epi32(sums[r][i], _mm512_maskz_loadu_epi32(mask, weight.offsets() + at));
      const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_maskz_loadu_ps(mask, weight.scales() + at));
      _mm512_mask_storeu_ps(out + at, mask, _mm512_mul_ps(scaled, peak));
    }
  }
}

using MultiplyRows = decltype(&multiply_rows<1>);
constexpr MultiplyRows kMultiplyRows[kTile + 1] = {nullptr,          multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                                   multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};

}  // namespace

void Weight::Free::operator()(std::int8_t* values) const noexcept { ::operator delete[](values, kAlignment); }

Weight::Weight(const std::int8_t* values, std::size_t depth, std::size_t columns, const float* scales)
    : depth_(depth), columns_(columns), scales_(scales), offsets_(columns) {
  const std::size_t size = panels() * groups() * kGroup;
  values_.reset(static_cast<std::int8_t*>(::operator new[](size, kAlignment)));
  std::memset(values_.get(), 0, size);
  for (std::size_t row = 0; row < depth; ++row) {  // in the order of the file, which is read but once
    const std::int8_t* from = values + row * columns;
    for (std::size_t panel = 0; panel < panels(); ++panel) {
      std::int8_t* to = values_.get() + (panel * groups() + row / 4) * kGroup + row % 4;
      const std::size_t first = panel * kPanel, width = std::min(kPanel, columns - first);
      for (std::size_t column = 0; column < width; ++column) {
        to[column * 4] = from[first + column];
        offsets_[first + column] -= 128 * from[first + column];
      }
    }
  }
}

void quantize(const float* x, std::size_t depth, const Rows& rows, std::size_t first, std::size_t last) noexcept {
  const __m512 step = _mm512_set1_ps(1.0F / 127.0F);
  const __m512 least = _mm512_set1_ps(-128.0F), most = _mm512_set1_ps(127.0F);
  const __m512i zero = _mm512_set1_epi32(128);
  for (std::size_t row = first; row < last; ++row) {
    const float* in = x + row * depth;
    __m512 highest = _mm512_setzero_ps();
    for (std::size_t at = 0; at < depth; at += 16)
      highest = _mm512_max_ps(highest, _mm512_abs_ps(_mm512_maskz_loadu_ps(mask_of(depth - at), in + at)));
    rows.peaks[row] = _mm512_reduce_max_ps(highest);
    const __m512 peak = _mm512_set1_ps(rows.peaks[row]);
    std::uint8_t* out = rows.values + row * rows.stride;
    for (std::size_t at = 0; at < depth; at += 16) {
      const __m512 unit = _mm512_div_ps(_mm512_maskz_loadu_ps(mask_of(depth - at), in + at), peak);
      // A row of zeros is 0/0 here: max takes its second operand then, as in the plain nodes.
      const __m512 levels = _mm512_min_ps(_mm512_max_ps(_mm512_div_ps(unit, step), least), most);
      const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(levels), zero);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + at), _mm512_cvtepi32_epi8(whole));
    }
  }
}

void multiply(const Rows& rows, const Weight& weight, std::size_t panel, float* y) noexcept {
  const std::size_t tiles = (rows.count + kTile - 1) / kTile;
  for (std::size_t tile = 0; tile < tiles; ++tile) {
    const std::size_t first = tile * rows.count / tiles, last = (tile + 1) * rows.count / tiles;
    kMultiplyRows[last - first](rows, first, weight, panel, y);
  }
}

}  // namespace specplug_ops
