/* A block of layers that are computed together: Conv, then optionally GroupNorm, ReLU and MaxPool2d(2). */
#pragma once
#include "vec.h"

typedef struct {
  int inputs, outputs, kernel, pad, height, width; /* of the convolution; height and width are its input's */
  int groups;                                      /* of the normalisation; 0: there is none */
  int relu, pool;                                  /* whether there is one */
  int bf16;                                        /* whether products are of bf16 numbers */
  int first;                                       /* whether its input needs no gradient */
  int border;                                      /* zeros that the next block wants beside each row */
  int unfold; /* AMX: columns of the kernel that stand among the channels, 1: none do; 0: no AMX for this block */
} Block;

/* Rows are stored with the zeros between them: each row's right border is the next row's left one. */
INLINE int out_height(Block b) { return b.height + 2 * b.pad - b.kernel + 1; }
INLINE int out_width(Block b) { return b.width + 2 * b.pad - b.kernel + 1; }
INLINE int flipped_pad(Block b) { return b.first ? 0 : b.kernel - 1 - b.pad; }
INLINE int x_stride(Block b) { return b.width + b.pad; }
INLINE int y_stride(Block b) { return out_width(b) + flipped_pad(b); }
INLINE int pooled_height(Block b) { return b.pool ? out_height(b) / 2 : out_height(b); }
INLINE int pooled_width(Block b) { return b.pool ? out_width(b) / 2 : out_width(b); }

typedef struct { /* of one group of lanes */
  vec *x;        /* [inputs][height][x_stride] */
  vec *y;        /* [outputs][out_height][y_stride]: what the convolution gives, in place of it later its gradient */
  vec *out;      /* [outputs][pooled_height][pooled_width + border] */
  vec *d_out;    /* [outputs][pooled_height][pooled_width] */
  vec *d_x;      /* [inputs][height][width] */
  vec *moments;  /* [groups][2]: mean, 1 / standard deviation */
  vec *x_pairs, *y_pairs;     /* bf16: x and the gradient of y, two channels interleaved in each vector */
  uint16_t *x_half, *y_half;  /* bf16: the same, LANES numbers a position; all four with AMX in the order of amx.h */
} Lanes;
