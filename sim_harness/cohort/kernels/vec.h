/* One vector holds one value of LANES samples; everything else is written in terms of it. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define REGISTERS 32
#define ISA "avx512"
#elif defined(__AVX2__)
#define LANES 8
#define REGISTERS 16
#define ISA "avx2"
#elif defined(__ARM_NEON)
#define LANES 4
#define REGISTERS 32
#define ISA "neon"
#else
#define LANES 4
#define REGISTERS 16
#define ISA "generic"
#endif

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline)) /* called from two places, compiled once */
#define UNROLL _Pragma("GCC unroll 16")

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

INLINE vec splat(float value) { return value - (vec){0}; }

/* Where `mask` is all ones `a`, where it is zero `b`. */
INLINE vec choose(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }

/* The larger one; b where either is NaN. */
INLINE vec larger(vec a, vec b) {
#ifdef __AVX512F__
  return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return choose(a > b, a, b);
#endif
}

INLINE ivec evens_of_two(int odd) {
  ivec index;
  for (int i = 0; i < LANES; i++) index[i] = 2 * i + odd;
  return index;
}

/* Reduce LANES vectors to one: lane i of the result is the sum over the lanes of v[i]. */
INLINE vec sums(vec *v) {
  const ivec even = evens_of_two(0), odd = evens_of_two(1);
  UNROLL for (int count = LANES / 2; count > 0; count /= 2)
    UNROLL for (int i = 0; i < count; i++)
      v[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], even) + __builtin_shuffle(v[2 * i], v[2 * i + 1], odd);
  return v[0];
}

INLINE float sum(vec v) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
}

/* Transpose LANES vectors in place. */
INLINE void transpose(vec *v) {
  ivec low, high;
  for (int i = 0; i < LANES; i++) {
    low[i] = i / 2 + (i % 2) * LANES;
    high[i] = low[i] + LANES / 2;
  }
  UNROLL for (int stage = LANES; stage > 1; stage /= 2) {
    vec next[LANES];
    UNROLL for (int i = 0; i < LANES / 2; i++) {
      next[2 * i] = __builtin_shuffle(v[i], v[i + LANES / 2], low);
      next[2 * i + 1] = __builtin_shuffle(v[i], v[i + LANES / 2], high);
    }
    UNROLL for (int i = 0; i < LANES; i++) v[i] = next[i];
  }
}

INLINE vec load(const float *from) {
  vec v;
  memcpy(&v, from, sizeof v);
  return v;
}

INLINE void store(float *to, vec v) { memcpy(to, &v, sizeof v); }
