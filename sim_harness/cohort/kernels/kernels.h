/* All that a generated model.c calls. */
#pragma once
#include "activate.h"
#include "conv.h"
#include "conv_gradient.h"
#include "half.h"
#include "linear.h"
#include "pool.h"

INLINE void block_forward(Block b, Lanes l, const float *packed, const float *bias, const float *gamma,
                          const float *beta, int training) {
#ifdef __AVX512BF16__
  if (b.bf16) {
    to_pairs(l.x, b.inputs, b.height * x_stride(b), l.x_pairs);
    if (training) to_half(l.x, b.inputs * b.height, b.width, x_stride(b), x_stride(b), l.x_half);
  }
#endif
  conv_forward(b, l, packed, bias);
  activate(b, l, gamma, beta);
}

/* Take the block's step, and give its input's gradient unless nobody wants that. */
INLINE void block_backward(Block b, const Lanes *lanes, int groups, const float *packed, float lr, float *w,
                           float *bias, float *gamma, float *beta) {
  Gradient gradient[b.outputs];
  memset(gradient, 0, sizeof gradient);
  for (int g = 0; g < groups; g++) {
    activate_backward(b, lanes[g], gamma, beta, gradient);
#ifdef __AVX512BF16__
    if (b.bf16) {
      to_half(lanes[g].y, b.outputs * out_height(b), out_width(b), y_stride(b), dy_stride(b), lanes[g].y_half);
      if (!b.first) to_pairs(lanes[g].y, b.outputs, out_height(b) * y_stride(b), lanes[g].y_pairs);
    }
#endif
    if (!b.first) conv_backward(b, lanes[g], packed);
  }
  step_conv(b, lanes, groups, lr, w);
  step_channels(b, gradient, lr, bias, gamma, beta);
}
