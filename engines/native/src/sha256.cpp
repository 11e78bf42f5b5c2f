#include "sha256.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "error.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define SPECPLUG_SHA_NI 1
#endif

namespace specplug::native {
namespace {

constexpr std::uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr std::size_t kBlock = 64;

std::uint32_t rotated(std::uint32_t word, int by) { return word >> by | word << (32 - by); }

void compress_portably(std::uint32_t* state, const unsigned char* data, std::size_t blocks) {
  for (; blocks; --blocks, data += kBlock) {
    std::uint32_t w[64];
    for (std::size_t t = 0; t < 16; ++t) {
      w[t] = std::uint32_t{data[4 * t]} << 24 | std::uint32_t{data[4 * t + 1]} << 16 |
             std::uint32_t{data[4 * t + 2]} << 8 | data[4 * t + 3];
    }
    for (int t = 16; t < 64; ++t) {
      const auto s0 = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ w[t - 15] >> 3;
      const auto s1 = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ w[t - 2] >> 10;
      w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    std::uint32_t v[8];
    std::copy_n(state, 8, v);
    for (int t = 0; t < 64; ++t) {
      const auto s1 = rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25);
      const auto choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
      const auto first = v[7] + s1 + choice + kRounds[t] + w[t];
      const auto s0 = rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22);
      const auto majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
      std::copy_backward(v, v + 7, v + 8);
      v[4] += first;
      v[0] = first + s0 + majority;
    }
    for (int i = 0; i < 8; ++i) state[i] += v[i];
  }
}

#ifdef SPECPLUG_SHA_NI
// Intel's instructions keep the state as (A, B, E, F) and (C, D, G, H).
__attribute__((target("sha,sse4.1,ssse3"))) void compress_by_instruction(
    std::uint32_t* state, const unsigned char* data, std::size_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i dcba = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state));
  const __m128i hgfe = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4));
  const __m128i cdab = _mm_shuffle_epi32(dcba, 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(hgfe, 0x1B);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
  __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
  for (; blocks; --blocks, data += kBlock) {
    const __m128i abef_before = abef;
    const __m128i cdgh_before = cdgh;
    __m128i w[4];
    for (std::size_t t = 0; t < 16; ++t) {  // four rounds each
      __m128i& now = w[t % 4];
      if (t < 4) {
        const auto* from = reinterpret_cast<const __m128i*>(data + 16 * t);
        now = _mm_shuffle_epi8(_mm_loadu_si128(from), big_endian);
      } else {
        const __m128i last = w[(t + 3) % 4];
        const __m128i middle = _mm_alignr_epi8(last, w[(t + 2) % 4], 4);
        now = _mm_sha256msg1_epu32(now, w[(t + 1) % 4]);
        now = _mm_sha256msg2_epu32(_mm_add_epi32(now, middle), last);
      }
      const auto* constants = reinterpret_cast<const __m128i*>(kRounds + 4 * t);
      __m128i sum = _mm_add_epi32(now, _mm_loadu_si128(constants));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      sum = _mm_shuffle_epi32(sum, 0x0E);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, sum);
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

bool has_instructions() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) &&
         __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("ssse3");
}
#endif

void compress(std::uint32_t* state, const unsigned char* data, std::size_t blocks) {
#ifdef SPECPLUG_SHA_NI
  static const bool by_instruction = has_instructions();
  if (by_instruction) return compress_by_instruction(state, data, blocks);
#endif
  compress_portably(state, data, blocks);
}

}  // namespace

void Sha256::update(const void* data, std::size_t bytes) {
  const auto* from = static_cast<const unsigned char*>(data);
  total_ += bytes;
  if (held_) {
    const auto taken = std::min(bytes, kBlock - held_);
    std::memcpy(rest_.data() + held_, from, taken);
    held_ += taken;
    from += taken;
    bytes -= taken;
    if (held_ < kBlock) return;
    compress(state_.data(), rest_.data(), 1);
    held_ = 0;
  }
  compress(state_.data(), from, bytes / kBlock);
  held_ = bytes % kBlock;
  if (held_) std::memcpy(rest_.data(), from + (bytes - held_), held_);
}

std::string Sha256::hexadecimal() {
  const std::uint64_t bits = total_ * 8;
  const unsigned char one = 0x80;
  update(&one, 1);
  const unsigned char zeros[kBlock] = {};
  update(zeros, (kBlock + 56 - held_) % kBlock);
  unsigned char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
  update(length, 8);
  std::string digest;
  for (const auto word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) digest += "0123456789abcdef"[word >> shift & 15];
  }
  return digest;
}

std::string file_sha256(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  if (!file) damaged(path, " cannot be read");
  std::vector<unsigned char> piece(std::size_t{1} << 18);
  Sha256 hash;
  while (const auto got = std::fread(piece.data(), 1, piece.size(), file.get())) {
    hash.update(piece.data(), got);
  }
  if (std::ferror(file.get())) damaged(path, " cannot be read to its end");
  return hash.hexadecimal();
}

}  // namespace specplug::native
