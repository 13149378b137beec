/* The gradient of a convolution's weights, and the step against it. */
#pragma once
#include "block.h"

#define GRADIENT_INPUTS 8
#define STRIP_POSITIONS 128 /* so that a strip of the output's gradient stays in the first cache */

/* Channels of output whose sums for one row of the kernel stand in registers. */
INLINE int gradient_outputs(int kernel) { return REGISTERS / (kernel > 3 ? 8 : 4); }

/* Bytes of one position, and positions of one vector. */
INLINE int position_bytes(Block b) { return b.bf16 ? 2 * LANES : 4 * LANES; }
INLINE int dy_stride(Block b) { return b.bf16 ? (out_width(b) + 1) / 2 * 2 : y_stride(b); }

INLINE vec add_products(int bf16, vec total, vec x, vec y) {
#ifdef __AVX512BF16__
  if (bf16) return (vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)x, (__m512bh)y);
#endif
  return total + x * y;
}

/* Add to total[outputs][kernel] what one row of the kernel gets from the rows `from` to `to` of the output. */
INLINE void gradient_rows(Block b, int ky, int from, int to, const char *x, const char *dy, vec *total) {
  const int outputs = gradient_outputs(b.kernel), bytes = position_bytes(b), step = b.bf16 ? 2 : 1;
  const int plane = out_height(b) * dy_stride(b) * bytes;
  vec sum[8][8];
  if (from < b.pad - ky) from = b.pad - ky;
  if (to > b.height + b.pad - ky) to = b.height + b.pad - ky;
  UNROLL for (int o = 0; o < outputs; o++)
    UNROLL for (int kx = 0; kx < b.kernel; kx++) sum[o][kx] = total[o * b.kernel + kx];
  for (int row = from; row < to; row++) {
    const char *x_row = x + ((row + ky - b.pad) * x_stride(b) - b.pad) * bytes, *dy_row = dy + row * dy_stride(b) * bytes;
    for (int column = 0; column < out_width(b); column += step, x_row += step * bytes, dy_row += step * bytes)
      UNROLL for (int kx = 0; kx < b.kernel; kx++) {
        const vec value = load((const float *)(x_row + kx * bytes));
        UNROLL for (int o = 0; o < outputs; o++)
          sum[o][kx] = add_products(b.bf16, sum[o][kx], value, load((const float *)(dy_row + o * plane)));
      }
  }
  UNROLL for (int o = 0; o < outputs; o++)
    UNROLL for (int kx = 0; kx < b.kernel; kx++) total[o * b.kernel + kx] = sum[o][kx];
}

/* Sum the gradient of `count` input channels' weights over one group of lanes, strip by strip. */
INLINE void gradient_lanes(Block b, Lanes l, int output, int input, int count, vec *total) {
  const int rows = (STRIP_POSITIONS + out_width(b) - 1) / out_width(b), bytes = position_bytes(b);
  const char *dy = (b.bf16 ? (char *)l.y_half : (char *)l.y) + output * out_height(b) * dy_stride(b) * bytes;
  const char *x = b.bf16 ? (char *)l.x_half : (char *)l.x;
  for (int from = 0; from < out_height(b); from += rows) {
    const int to = from + rows < out_height(b) ? from + rows : out_height(b);
    for (int i = 0; i < count; i++)
      for (int ky = 0; ky < b.kernel; ky++)
        gradient_rows(b, ky, from, to, x + (input + i) * b.height * x_stride(b) * bytes, dy,
                      total + (i * b.kernel + ky) * gradient_outputs(b.kernel) * b.kernel);
  }
}

/* Take the step w -= lr * gradient for the weights whose sums stand in total[input][ky][output][kx]. */
INLINE void step_weights(Block b, int output, int input, int count, vec *total, float lr, float *w) {
  const int outputs = gradient_outputs(b.kernel), size = count * b.kernel * outputs * b.kernel;
  float *gradient = (float *)total;
  for (int i = 0; i < size; i += LANES) {
    vec part[LANES];
    UNROLL for (int j = 0; j < LANES; j++) part[j] = total[i + j];
    store(gradient + i, sums(part));
  }
  for (int i = 0; i < count; i++)
    for (int ky = 0; ky < b.kernel; ky++)
      for (int o = 0; o < outputs; o++)
        for (int kx = 0; kx < b.kernel; kx++)
          w[(((output + o) * b.inputs + input + i) * b.kernel + ky) * b.kernel + kx] -= lr * *gradient++;
}

/* Take one step for all weights of the convolution. */
INLINE void step_conv(Block b, const Lanes *lanes, int groups, float lr, float *w) {
  const int outputs = gradient_outputs(b.kernel);
  vec total[GRADIENT_INPUTS * b.kernel * outputs * b.kernel + LANES];
  for (int o = 0; o < b.outputs; o += outputs)
    for (int i = 0; i < b.inputs; i += GRADIENT_INPUTS) {
      const int count = b.inputs - i < GRADIENT_INPUTS ? b.inputs - i : GRADIENT_INPUTS;
      memset(total, 0, sizeof total);
      for (int g = 0; g < groups; g++) gradient_lanes(b, lanes[g], o, i, count, total);
      step_weights(b, o, i, count, total, lr, w);
    }
}
