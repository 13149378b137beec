/* Fully connected layers, optionally with ReLU behind. */
#pragma once
#include "vec.h"

#define LINEAR_TILE 8

typedef struct {
  int inputs, outputs, relu;
} Linear;

typedef struct {      /* of one group of lanes */
  const vec *x;       /* [inputs] */
  vec *y, *d_y, *d_x; /* [outputs], [outputs], [inputs] */
  float *by_sample;   /* [LANES][sample_stride]: x, samples outermost */
} Features;

/* Not a multiple of a page, so that rows don't compete for the same places in the cache. */
INLINE int sample_stride(Linear l) { return (l.inputs + LANES - 1) / LANES * LANES + LANES; }

INLINE void linear_tile(Linear l, int count, const vec *x, const float *w, const float *bias, vec *y) {
  vec total[LINEAR_TILE];
  UNROLL for (int o = 0; o < count; o++) total[o] = splat(bias[o]);
  for (int i = 0; i < l.inputs; i++)
    UNROLL for (int o = 0; o < count; o++) total[o] += x[i] * w[o * l.inputs + i];
  UNROLL for (int o = 0; o < count; o++) y[o] = l.relu ? larger(splat(0), total[o]) : total[o];
}

INLINE void linear_forward(Linear l, Features f, const float *w, const float *bias) {
  const int rest = l.outputs % LINEAR_TILE, whole = l.outputs - rest;
  for (int o = 0; o < whole; o += LINEAR_TILE)
    linear_tile(l, LINEAR_TILE, f.x, w + o * l.inputs, bias + o, f.y + o);
  linear_tile(l, rest, f.x, w + whole * l.inputs, bias + whole, f.y + whole);
}

INLINE void linear_backward_tile(Linear l, int count, const vec *d_y, const float *w, vec *d_x) {
  vec total[LINEAR_TILE];
  UNROLL for (int i = 0; i < count; i++) total[i] = splat(0);
  for (int o = 0; o < l.outputs; o++)
    UNROLL for (int i = 0; i < count; i++) total[i] += d_y[o] * w[o * l.inputs + i];
  UNROLL for (int i = 0; i < count; i++) d_x[i] = total[i];
}

/* From f.d_y to f.d_x; a ReLU turns d_y into the gradient before it. */
INLINE void linear_backward(Linear l, Features f, const float *w) {
  const int rest = l.inputs % LINEAR_TILE, whole = l.inputs - rest;
  for (int o = 0; l.relu && o < l.outputs; o++) f.d_y[o] = (vec)((f.y[o] > 0) & (ivec)f.d_y[o]);
  for (int i = 0; i < whole; i += LINEAR_TILE) linear_backward_tile(l, LINEAR_TILE, f.d_y, w + i, f.d_x + i);
  linear_backward_tile(l, rest, f.d_y, w + whole, f.d_x + whole);
}

INLINE void to_samples(Linear l, Features f) {
  for (int i = 0; i < l.inputs; i += LANES) {
    vec part[LANES];
    for (int j = 0; j < LANES; j++) part[j] = i + j < l.inputs ? f.x[i + j] : splat(0);
    transpose(part);
    for (int j = 0; j < LANES; j++) store(f.by_sample + j * sample_stride(l) + i, part[j]);
  }
}

/* Take the step for the weights of `count` outputs and LANES inputs. */
INLINE void step_linear_tile(Linear l, const Features *f, int groups, int count, int output, int input, float lr,
                             float *w) {
  vec total[LINEAR_TILE];
  UNROLL for (int o = 0; o < count; o++) total[o] = splat(0);
  for (int g = 0; g < groups; g++)
    for (int s = 0; s < LANES; s++) {
      const vec x = load(f[g].by_sample + s * sample_stride(l) + input);
      const float *d_y = (const float *)(f[g].d_y + output) + s;
      UNROLL for (int o = 0; o < count; o++) total[o] += x * d_y[o * LANES];
    }
  const int width = l.inputs - input < LANES ? l.inputs - input : LANES;
  UNROLL for (int o = 0; o < count; o++) {
    float *row = w + (output + o) * l.inputs + input;
    if (width == LANES)
      store(row, load(row) - lr * total[o]);
    else
      for (int i = 0; i < width; i++) row[i] -= lr * total[o][i];
  }
}

INLINE void step_linear(Linear l, const Features *f, int groups, float lr, float *w, float *bias) {
  const int rest = l.outputs % LINEAR_TILE, whole = l.outputs - rest;
  for (int g = 0; g < groups; g++) to_samples(l, f[g]);
  for (int input = 0; input < l.inputs; input += LANES) {
    for (int o = 0; o < whole; o += LINEAR_TILE) step_linear_tile(l, f, groups, LINEAR_TILE, o, input, lr, w);
    step_linear_tile(l, f, groups, rest, whole, input, lr, w);
  }
  for (int o = 0; o < l.outputs; o++) {
    vec total = {0};
    for (int g = 0; g < groups; g++) total += f[g].d_y[o];
    bias[o] -= lr * sum(total);
  }
}
