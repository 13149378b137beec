/* AdaptiveAvgPool2d, torch's windows: they overlap where the sizes don't divide. */
#pragma once
#include "vec.h"

typedef struct {
  int channels, in_height, in_width, height, width;
} Average;

INLINE int window_start(int i, int in, int out) { return i * in / out; }
INLINE int window_end(int i, int in, int out) { return ((i + 1) * in + out - 1) / out; }

#define EACH_WINDOW(A)                                                                 \
  for (int c = 0; c < (A).channels; c++)                                               \
    for (int row = 0; row < (A).height; row++)                                         \
      for (int column = 0; column < (A).width; column++)

#define EACH_PIXEL(A)                                                                                           \
  for (int y = window_start(row, (A).in_height, (A).height); y < window_end(row, (A).in_height, (A).height); y++) \
    for (int x = window_start(column, (A).in_width, (A).width); x < window_end(column, (A).in_width, (A).width); x++)

INLINE float window_size(Average a, int row, int column) {
  return (window_end(row, a.in_height, a.height) - window_start(row, a.in_height, a.height)) *
         (window_end(column, a.in_width, a.width) - window_start(column, a.in_width, a.width));
}

INLINE void average(Average a, const vec *in, vec *out) {
  EACH_WINDOW(a) {
    vec total = {0};
    EACH_PIXEL(a) total += in[(c * a.in_height + y) * a.in_width + x];
    *out++ = total / window_size(a, row, column);
  }
}

INLINE void average_backward(Average a, const vec *d_out, vec *d_in) {
  memset(d_in, 0, sizeof(vec) * a.channels * a.in_height * a.in_width);
  EACH_WINDOW(a) {
    const vec share = *d_out++ / window_size(a, row, column);
    EACH_PIXEL(a) d_in[(c * a.in_height + y) * a.in_width + x] += share;
  }
}
