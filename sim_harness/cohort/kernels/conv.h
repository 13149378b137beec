/* Convolution with stride 1, forward and for the gradient of its input: the same sum with other weights. */
#pragma once
#include "block.h"

#define TILE_CHANNELS (REGISTERS / 4)
#define TILE_COLUMNS (REGISTERS == 32 ? 3 : 2)

typedef struct {
  int inputs, in_height, in_stride;           /* inputs counts vectors: pairs of channels with bf16 */
  int outputs, height, width, stride;         /* of what is computed */
  int kernel, pad, bf16;
} Conv;

/* Add the products of `x` and one weight, or with bf16 of a pair of each. */
INLINE vec add_product(int bf16, vec total, vec x, const float *w) {
#ifdef __AVX512BF16__
  if (bf16) {
    int32_t pair;
    memcpy(&pair, w, sizeof pair);
    return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)x, (__m512bh)_mm512_set1_epi32(pair));
  }
#endif
  return total + x * *w;
}

/* Compute TILE_CHANNELS channels of `columns` neighbouring positions, all sums in registers. */
INLINE void conv_tile(Conv c, int columns, int row, int column, const vec *x, const float *w, const float *bias,
                      vec *y) {
  vec total[TILE_CHANNELS][TILE_COLUMNS];
  UNROLL for (int o = 0; o < TILE_CHANNELS; o++)
    UNROLL for (int p = 0; p < columns; p++) total[o][p] = splat(bias ? bias[o] : 0);
  const int from = row < c.pad ? c.pad - row : 0;
  const int to = row + c.kernel > c.in_height + c.pad ? c.in_height + c.pad - row : c.kernel;
  for (int i = 0; i < c.inputs; i++)
    for (int ky = from; ky < to; ky++) {
      const vec *x_row = x + (i * c.in_height + row + ky - c.pad) * c.in_stride + column - c.pad;
      const float *w_row = w + (i * c.kernel + ky) * c.kernel * TILE_CHANNELS;
      UNROLL for (int kx = 0; kx < c.kernel; kx++)
        UNROLL for (int o = 0; o < TILE_CHANNELS; o++)
          UNROLL for (int p = 0; p < columns; p++)
            total[o][p] = add_product(c.bf16, total[o][p], x_row[kx + p], w_row + kx * TILE_CHANNELS + o);
    }
  UNROLL for (int o = 0; o < TILE_CHANNELS; o++)
    UNROLL for (int p = 0; p < columns; p++) y[(o * c.height + row) * c.stride + column + p] = total[o][p];
}

/* Compute all outputs; x, shape [inputs][in_height][in_stride], stands beside `pad` zeros; w is packed. */
INLINE void conv(Conv c, const vec *x, const float *w, const float *bias, vec *y) {
  const int tiles = (c.width + TILE_COLUMNS - 1) / TILE_COLUMNS, large = c.width - tiles * (TILE_COLUMNS - 1);
  for (int o = 0; o < c.outputs; o += TILE_CHANNELS)
    for (int row = 0; row < c.height; row++) {
      const float *w_tile = w + o * c.inputs * c.kernel * c.kernel, *b = bias ? bias + o : 0;
      vec *y_tile = y + o * c.height * c.stride;
      int column = 0;
      if (c.width < TILE_COLUMNS - 1) {
        conv_tile(c, 1, row, 0, x, w_tile, b, y_tile);
        continue;
      }
      for (int t = 0; t < large; t++, column += TILE_COLUMNS)
        conv_tile(c, TILE_COLUMNS, row, column, x, w_tile, b, y_tile);
      for (; column < c.width; column += TILE_COLUMNS - 1)
        conv_tile(c, TILE_COLUMNS - 1, row, column, x, w_tile, b, y_tile);
    }
}

INLINE uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7fc0;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* Store weights in the order in which conv_tile reads them; at(o, i, ky, kx) finds one. */
#define PACK(OUTPUTS, INPUTS, KERNEL, BF16, AT)                                                    \
  for (int tile = 0; tile < (OUTPUTS); tile += TILE_CHANNELS)                                      \
    for (int i = 0; i < (INPUTS); i += (BF16) ? 2 : 1)                                             \
      for (int ky = 0; ky < (KERNEL); ky++)                                                        \
        for (int kx = 0; kx < (KERNEL); kx++)                                                      \
          for (int o = tile; o < tile + TILE_CHANNELS; o++, packed++) {                            \
            if (BF16) {                                                                            \
              const uint32_t second = i + 1 < (INPUTS) ? to_bf16(AT(o, i + 1, ky, kx)) : 0;        \
              const uint32_t pair = second << 16 | to_bf16(AT(o, i, ky, kx));                      \
              memcpy(packed, &pair, sizeof pair);                                                  \
            } else {                                                                               \
              *packed = AT(o, i, ky, kx);                                                          \
            }                                                                                      \
          }

INLINE void pack_forward(Block b, const float *w, float *packed) {
#define AT(o, i, ky, kx) w[(((o) * b.inputs + (i)) * b.kernel + (ky)) * b.kernel + (kx)]
  PACK(b.outputs, b.inputs, b.kernel, b.bf16, AT)
#undef AT
}

/* For the gradient of the input: outputs and inputs change places, and the kernel is turned by half a turn. */
INLINE void pack_backward(Block b, const float *w, float *packed) {
#define AT(o, i, ky, kx) w[(((i) * b.inputs + (o)) * b.kernel + b.kernel - 1 - (ky)) * b.kernel + b.kernel - 1 - (kx)]
  PACK(b.inputs, b.outputs, b.kernel, b.bf16, AT)
#undef AT
}

INLINE void conv_forward(Block b, Lanes l, const float *packed, const float *bias) {
  const Conv c = {b.bf16 ? (b.inputs + 1) / 2 : b.inputs, b.height, x_stride(b), b.outputs, out_height(b),
                  out_width(b), y_stride(b), b.kernel, b.pad, b.bf16};
  conv(c, b.bf16 ? l.x_pairs : l.x, packed, bias, l.y);
}

/* From the gradient of the output, which stands where the output was, to that of the input. */
INLINE void conv_backward(Block b, Lanes l, const float *packed) {
  const Conv c = {b.bf16 ? b.outputs / 2 : b.outputs, out_height(b), y_stride(b), b.inputs, b.height, b.width,
                  b.width, b.kernel, flipped_pad(b), b.bf16};
  conv(c, b.bf16 ? l.y_pairs : l.y, packed, 0, l.d_x);
}
