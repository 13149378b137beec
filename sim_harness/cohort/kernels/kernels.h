/* All that a generated model.c calls. */
#pragma once
#include "activate.h"
#include "amx.h"
#include "conv.h"
#include "conv_gradient.h"
#include "half.h"
#include "linear.h"
#include "pool.h"

/* The convolution, and for training the copy of its input that its weights' gradient wants. */
INLINE void convolve(Block b, Lanes l, const float *packed, const float *bias, int training) {
#ifdef AMX
  if (b.unfold) {
    tile_forward(b, l, packed, bias);
    if (training) input_tiles(b, l);
    return;
  }
#endif
#ifdef __AVX512BF16__
  if (b.bf16) {
    to_pairs(l.x, b.inputs, b.height * x_stride(b), l.x_pairs);
    if (training) to_half(l.x, b.inputs * b.height, b.width, x_stride(b), x_stride(b), l.x_half);
  }
#endif
  conv_forward(b, l, packed, bias);
}

/* The input's gradient, unless nobody wants that, and the copy of the output's that the weights' gradient wants. */
INLINE void convolve_backward(Block b, Lanes l, const float *packed) {
#ifdef AMX
  if (b.unfold) {
    gradient_tiles(b, l);
    if (!b.first) tile_backward(b, l, packed);
    return;
  }
#endif
#ifdef __AVX512BF16__
  if (b.bf16) {
    to_half(l.y, b.outputs * out_height(b), out_width(b), y_stride(b), dy_stride(b), l.y_half);
    if (!b.first) to_pairs(l.y, b.outputs, out_height(b) * y_stride(b), l.y_pairs);
  }
#endif
  if (!b.first) conv_backward(b, l, packed);
}

INLINE void step_convolution(Block b, const Lanes *lanes, int groups, float lr, float *w) {
#ifdef AMX
  if (b.unfold) {
    tile_step(b, lanes, groups, lr, w);
    return;
  }
#endif
  step_conv(b, lanes, groups, lr, w);
}

INLINE void block_forward(Block b, Lanes l, const float *packed, const float *bias, const float *gamma,
                          const float *beta, int training) {
  convolve(b, l, packed, bias, training);
  activate(b, l, gamma, beta);
}

/* Take the block's step, and give its input's gradient unless nobody wants that. */
INLINE void block_backward(Block b, const Lanes *lanes, int groups, const float *packed, float lr, float *w,
                           float *bias, float *gamma, float *beta) {
  Gradient gradient[b.outputs];
  memset(gradient, 0, sizeof gradient);
  for (int g = 0; g < groups; g++) {
    activate_backward(b, lanes[g], gamma, beta, gradient);
    convolve_backward(b, lanes[g], packed);
  }
  step_convolution(b, lanes, groups, lr, w);
  step_channels(b, gradient, lr, bias, gamma, beta);
}
