/* Copies in bf16, rounded to nearest even, in the two orders that products want. */
#pragma once
#include "block.h"

#ifdef __AVX512BF16__
/* The lanes of two vectors side by side: first, second, first, second, ... */
INLINE vec interleaved(vec first, vec second) {
  static const uint16_t order[32] __attribute__((aligned(64))) = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return (vec)_mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}

/* Two channels interleaved in each vector; the last of an odd number has zeros beside it. */
INLINE void to_pairs(const vec *from, int channels, int plane, vec *pairs) {
  for (int c = 0; c < channels; c += 2)
    for (int i = 0; i < plane; i++)
      pairs[c / 2 * plane + i] =
          interleaved(from[c * plane + i], c + 1 < channels ? from[(c + 1) * plane + i] : splat(0));
}

/* Rows of `width` positions, LANES numbers each. */
INLINE void to_half(const vec *from, int rows, int width, int from_stride, int stride, uint16_t *half) {
  for (int row = 0; row < rows; row++)
    for (int i = 0; i < width; i++)
      _mm256_storeu_si256((__m256i *)(half + (row * stride + i) * LANES),
                          (__m256i)_mm512_cvtneps_pbh((__m512)from[row * from_stride + i]));
}
#endif
