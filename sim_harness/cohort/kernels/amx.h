/* Convolutions in AMX tiles: 16 rows of 64 bytes, bf16 products with fp32 sums.

   Forward and for the input's gradient, at one position and summed over the kernel:
     C[16 outputs][LANES] += A[16 outputs][channels] x B[channels][LANES].
   For the weights' gradient, at one place of the kernel and summed over all positions, two at a time:
     C[16 outputs][16 channels] += A[16 outputs][2 x LANES] x B[2 x LANES][16 channels].
   B has two of what is summed over side by side. */
#pragma once
#include "tiles.h"

#ifdef AMX
#define TAPS 5 /* places of the kernel whose sums stand in tiles at once */

typedef struct {
  uint8_t palette, start, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} TileConfig;

/* Some compilers believe that the loads and stores of tiles touch no memory. */
INLINE void fence(const void *memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

/* Tiles 0 to 3, and 4 where `pairs` is 16: C; 4 to 6: B; 7: A. */
INLINE void tiles_begin(int pairs) {
  TileConfig config = {.palette = 1};
  for (int t = 0; t < 8; t++) {
    config.rows[t] = t >= 4 && t <= 6 ? pairs : TILE;
    config.row_bytes[t] = t == 7 ? 4 * pairs : 64;
  }
  fence(&config);
  _tile_loadconfig(&config);
}

INLINE void tiles_end(const void *results) {
  _tile_release();
  fence(results);
}

typedef struct {
  int channels, in_height, in_stride; /* of what `channel_tiles` copied */
  int rows, columns, pad, side;       /* of the kernel; zeros above and beside */
  int outputs, height, width, stride;
} TileConv;

/* Compute 16 outputs of `count`, at most 4, neighbouring positions, from what stands in `start`. */
INLINE void tile_positions(TileConv c, int count, int row, int column, const vec *x, const float *w, const vec *start,
                           vec *y) {
  const int pairs = tile_pairs(c.channels), blocks = (c.channels + 2 * pairs - 1) / (2 * pairs);
  const int from = row < c.pad ? c.pad - row : 0;
  const int to = row + c.rows > c.in_height + c.pad ? c.in_height + c.pad - row : c.rows;
  _tile_loadd(0, start, 64);
  _tile_loadd(1, start, 64);
  _tile_loadd(2, start, 64);
  _tile_loadd(3, start, 64);
  for (int block = 0; block < blocks; block++)
    for (int ky = from; ky < to; ky++)
      for (int kx = 0; kx < c.columns; kx++) {
        const int position = (block * c.in_height + row + ky - c.pad) * c.in_stride + column + kx - c.side;
        const vec *at = x + position * pairs;
        _tile_loadd(7, w + ((block * c.rows + ky) * c.columns + kx) * TILE * pairs, 4 * pairs);
        _tile_loadd(4, at, 64);
        _tile_dpbf16ps(0, 7, 4);
        if (count > 1) {
          _tile_loadd(5, at + pairs, 64);
          _tile_dpbf16ps(1, 7, 5);
        }
        if (count > 2) {
          _tile_loadd(6, at + 2 * pairs, 64);
          _tile_dpbf16ps(2, 7, 6);
        }
        if (count > 3) {
          _tile_loadd(4, at + 3 * pairs, 64);
          _tile_dpbf16ps(3, 7, 4);
        }
      }
  const int apart = sizeof(vec) * c.height * c.stride;
  y += row * c.stride + column;
  _tile_stored(0, y, apart);
  if (count > 1) _tile_stored(1, y + 1, apart);
  if (count > 2) _tile_stored(2, y + 2, apart);
  if (count > 3) _tile_stored(3, y + 3, apart);
}

INLINE void tile_conv(TileConv c, const vec *x, const float *w, const float *bias, vec *y) {
  vec start[TILE];
  const int pairs = tile_pairs(c.channels);
  const int all_pairs = (c.channels + 2 * pairs - 1) / (2 * pairs) * pairs, plane = c.height * c.stride;
  tiles_begin(pairs);
  for (int o = 0; o < c.outputs; o += TILE) {
    for (int i = 0; i < TILE; i++) start[i] = splat(bias ? bias[o + i] : 0);
    fence(start);
    for (int row = 0; row < c.height; row++)
      for (int column = 0; column < c.width; column += 4)
        tile_positions(c, c.width - column, row, column, x, w + o * all_pairs * c.rows * c.columns, start,
                       y + o * plane);
  }
  tiles_end(y);
}

INLINE void tile_forward(Block b, Lanes l, const float *packed, const float *bias) {
  const TileConv c = {unfolded(b), b.height, x_stride(b), b.kernel, tap_columns(b), b.pad, side_pad(b),
                      b.outputs, out_height(b), out_width(b), y_stride(b)};
  channel_tiles(b, l.x, unfolded(b), b.height * x_stride(b), l.x_pairs);
  tile_conv(c, l.x_pairs, packed, bias, l.y);
}

/* From the gradient of the output, which stands where the output was, to that of the input. */
INLINE void tile_backward(Block b, Lanes l, const float *packed) {
  const TileConv c = {b.outputs, out_height(b), y_stride(b), b.kernel, b.kernel, flipped_pad(b), flipped_pad(b),
                      b.inputs, b.height, b.width, b.width};
  channel_tiles(b, l.y, b.outputs, out_height(b) * y_stride(b), l.y_pairs);
  tile_conv(c, l.y_pairs, packed, 0, l.d_x);
}

#define TAP(J, B)                                    \
  if (at[J]) {                                       \
    _tile_loadd(B, at[J] + column * (TILE / 2), 64); \
    _tile_dpbf16ps(J, 7, B);                         \
  }

/* Sum the gradient of 16 outputs' weights for 16 unfolded channels, at TAPS places of the kernel from `first` on. */
INLINE void tile_gradient(Block b, const Lanes *lanes, int groups, int output, int channel, int first,
                          float sums[TAPS][TILE][TILE]) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  for (int g = 0; g < groups; g++) {
    const vec *dy = (vec *)lanes[g].y_half + output * out_height(b) * column_pairs(b);
    for (int row = 0; row < out_height(b); row++) {
      const vec *at[TAPS];
      for (int j = 0; j < TAPS; j++) {
        const int ky = (first + j) / tap_columns(b), kx = (first + j) % tap_columns(b), in_row = row + ky - b.pad;
        const int position = (channel / TILE * b.height + in_row) * x_stride(b) + kx - side_pad(b);
        at[j] = ky < b.kernel && in_row >= 0 && in_row < b.height
                    ? (vec *)lanes[g].x_half + position * (TILE / 2) : 0;
      }
      for (int column = 0; column < out_width(b); column += 2, dy += TILE) {
        _tile_loadd(7, dy, 64);
        TAP(0, 5)
        TAP(1, 6)
        TAP(2, 5)
        TAP(3, 6)
        TAP(4, 5)
      }
    }
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  _tile_stored(4, sums[4], 64);
}
#undef TAP

/* Take one step for all weights of the convolution. */
INLINE void tile_step(Block b, const Lanes *lanes, int groups, float lr, float *w) {
  float sums[TAPS][TILE][TILE] __attribute__((aligned(64)));
  const int taps = b.kernel * tap_columns(b);
  for (int g = 0; g < groups; g++) fence(lanes[g].x_half);
  tiles_begin(TILE);
  for (int output = 0; output < b.outputs; output += TILE)
    for (int channel = 0; channel < unfolded(b); channel += TILE)
      for (int first = 0; first < taps; first += TAPS) {
        tile_gradient(b, lanes, groups, output, channel, first, sums);
        for (int j = 0; j < TAPS && first + j < taps; j++)
          for (int o = 0; o < TILE; o++)
            for (int c = channel; c < channel + TILE && c < unfolded(b); c++)
              w[weight_at(b, output + o, c, first + j)] -= lr * sums[j][o][c - channel];
      }
  tiles_end(w);
}
#endif
