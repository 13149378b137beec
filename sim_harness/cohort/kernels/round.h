/* A node's training round and a model's test, over the functions that a generated model.c defines:
   pack, forward, backward, scores, and its constants. */
#pragma once
#include "loss.h"

/* Put LANES samples side by side: [channels][height][stride]; lanes without a sample of their own repeat the first. */
INLINE void gather(const float *x, const int64_t *index, int count, int channels, int height, int width, int stride,
                   vec *to) {
  const float *from[LANES];
  for (int lane = 0; lane < LANES; lane++)
    from[lane] = x + index[lane < count ? lane : 0] * channels * height * width;
  for (int row = 0; row < channels * height; row++, to += stride) {
    int column = 0;
    for (; column + LANES <= width; column += LANES) {
      vec part[LANES];
      UNROLL for (int lane = 0; lane < LANES; lane++) part[lane] = load(from[lane] + row * width + column);
      transpose(part);
      UNROLL for (int i = 0; i < LANES; i++) to[column + i] = part[i];
    }
    for (; column < width; column++) {
      float values[LANES];
      for (int lane = 0; lane < LANES; lane++) values[lane] = from[lane][row * width + column];
      to[column] = load(values);
    }
  }
}

static int lanes_of(int group, int n) { return n - group * LANES < LANES ? n - group * LANES : LANES; }

int64_t scratch_bytes(void) { return (int64_t)SCRATCH * sizeof(vec); }

const char *isa(void) { return ISA; }

/* Train `w` in place on steps x n samples; return the steps done, the last of them with a loss above the limit or NaN
   unless all are. `scratch` is aligned and was zero when it was made; w may end up not finite. */
int64_t train_round(float *w, const float *x, const int64_t *y, const int64_t *index, int64_t steps, int64_t n,
                    float lr, double limit, double *losses, void *scratch) {
  const int groups = (n + LANES - 1) / LANES;
  for (int64_t step = 0; step < steps; step++, index += n) {
    double loss = 0;
    pack(w, scratch, 1);
    for (int g = 0; g < groups; g++) {
      const int count = lanes_of(g, n);
      int64_t labels[LANES];
      for (int i = 0; i < count; i++) labels[i] = y[index[g * LANES + i]];
      gather(x, index + g * LANES, count, CHANNELS, HEIGHT, WIDTH, INPUT_STRIDE, input(scratch, g));
      forward(w, scratch, g, 1);
      loss += cross_entropy(CLASSES, scores(scratch, g), labels, count, n, score_gradient(scratch, g));
    }
    backward(w, scratch, groups, lr);
    losses[step] = (float)(loss / n);
    if (!(losses[step] <= limit)) return step + 1;
  }
  return steps;
}

/* Whether all parameters are finite. */
int64_t all_finite(const float *w) {
  for (int64_t i = 0; i < PARAMETERS; i++)
    if (!isfinite(w[i])) return 0;
  return 1;
}

/* Test a model on n samples; returns how many are right, and the sum of their losses. */
int64_t test_model(const float *w, const float *x, const int64_t *y, const int64_t *index, int64_t n, double *loss,
                   void *scratch) {
  int64_t found = 0;
  *loss = 0;
  pack(w, scratch, 0);
  for (int64_t at = 0; at < n; at += LANES) {
    const int count = lanes_of(0, n - at < LANES ? n - at : LANES);
    int64_t labels[LANES];
    for (int i = 0; i < count; i++) labels[i] = y[index[at + i]];
    gather(x, index + at, count, CHANNELS, HEIGHT, WIDTH, INPUT_STRIDE, input(scratch, 0));
    forward(w, scratch, 0, 0);
    *loss += cross_entropy(CLASSES, scores(scratch, 0), labels, count, 1, score_gradient(scratch, 0));
    found += right(CLASSES, scores(scratch, 0), labels, count);
  }
  return found;
}
