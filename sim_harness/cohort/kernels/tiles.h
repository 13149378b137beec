/* What AMX's tiles are loaded from: copies laid out so that every A and B of amx.h is one piece of memory. */
#pragma once
#include "conv.h"
#include "half.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define AMX
#define TILE 16 /* rows, and also channels or pairs of them */

/* Inputs as the products see them: of a first convolution with few, a row of the kernel stands among them. */
INLINE int unfolded(Block b) { return b.inputs * b.unfold; }
INLINE int tap_columns(Block b) { return b.kernel / b.unfold; }
INLINE int side_pad(Block b) { return b.unfold > 1 ? 0 : b.pad; }

/* Pairs of channels in one tile. */
INLINE int tile_pairs(int channels) { return channels < 2 * TILE ? (channels + 1) / 2 : TILE; }

INLINE vec two(vec first, vec second) { return (vec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first); }

/* Where the plane of unfolded channel c begins. */
INLINE const vec *plane_of(Block b, const vec *x, int c, int plane) {
  return x + c / b.unfold * plane + (b.unfold > 1 ? c % b.unfold - b.pad : 0);
}

/* Copy for B over channels: [blocks of pairs][plane][pairs][LANES][2]. */
INLINE void channel_tiles(Block b, const vec *from, int channels, int plane, vec *to) {
  const int step = 2 * tile_pairs(channels);
  for (int block = 0; block < channels; block += step)
    for (int i = 0; i < plane; i++)
      for (int c = block; c < block + step; c += 2)
        *to++ = interleaved(plane_of(b, from, c, plane)[i],
                            c + 1 < channels ? plane_of(b, from, c + 1, plane)[i] : splat(0));
}

/* Copy x for B over positions and lanes: [blocks of 16 channels][plane][LANES / 2][16][2]. */
INLINE void input_tiles(Block b, Lanes l) {
  const int plane = b.height * x_stride(b);
  for (int block = 0; block < unfolded(b); block += TILE)
    for (int i = 0; i < plane; i += 2) { /* with an odd plane, the next block's first position is written twice */
      vec rows[TILE];
      for (int c = 0; c < TILE; c++) {
        const vec *from = plane_of(b, l.x, block + c, plane) + i;
        rows[c] = block + c < unfolded(b) ? two(from[0], from[1]) : splat(0);
      }
      transpose(rows);
      memcpy((vec *)l.x_half + (block / TILE * plane + i) * (TILE / 2), rows, sizeof rows);
    }
}

INLINE int column_pairs(Block b) { return (out_width(b) + 1) / 2; }

/* Copy the output's gradient for A over positions and lanes: [blocks of 16 outputs][rows][pairs][16][2][LANES]. */
INLINE void gradient_tiles(Block b, Lanes l) {
  vec *to = (vec *)l.y_half;
  for (int block = 0; block < b.outputs; block += TILE)
    for (int row = 0; row < out_height(b); row++)
      for (int column = 0; column < out_width(b); column += 2)
        for (int c = block; c < block + TILE; c++) {
          const vec *y = l.y + (c * out_height(b) + row) * y_stride(b) + column;
          *to++ = two(y[0], column + 1 < out_width(b) ? y[1] : splat(0));
        }
}

/* Return where the weight of output o, unfolded channel c and place `tap` stands. */
INLINE int weight_at(Block b, int o, int c, int tap) {
  return (o * b.inputs + c / b.unfold) * b.kernel * b.kernel + tap * b.unfold + c % b.unfold;
}

/* Store weights as `tile_conv` reads them: [blocks of 16 outputs][blocks of pairs][taps][16][pairs][2]. */
#define PACK_TILES(OUTPUTS, CHANNELS, TAPS, AT)                                                    \
  for (int tile = 0; tile < (OUTPUTS); tile += TILE)                                               \
    for (int block = 0; block < (CHANNELS); block += 2 * tile_pairs(CHANNELS))                     \
      for (int tap = 0; tap < (TAPS); tap++)                                                       \
        for (int o = tile; o < tile + TILE; o++)                                                   \
          for (int c = block; c < block + 2 * tile_pairs(CHANNELS); c++)                           \
            *pack++ = c < (CHANNELS) ? to_bf16(AT(o, c, tap)) : 0;

INLINE void pack_tiles_forward(Block b, const float *w, float *packed) {
  uint16_t *pack = (uint16_t *)packed;
#define AT(o, c, tap) w[weight_at(b, o, c, tap)]
  PACK_TILES(b.outputs, unfolded(b), b.kernel * tap_columns(b), AT)
#undef AT
}

/* For the gradient of the input: outputs and inputs change places, and the kernel is turned by half a turn. */
INLINE void pack_tiles_backward(Block b, const float *w, float *packed) {
  uint16_t *pack = (uint16_t *)packed;
#define AT(o, c, tap) w[((c) * b.inputs + (o)) * b.kernel * b.kernel + b.kernel * b.kernel - 1 - (tap)]
  PACK_TILES(b.inputs, b.outputs, b.kernel * b.kernel, AT)
#undef AT
}
#endif
