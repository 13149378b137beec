/* AMX's tiles in plain C, for machines that have none: what Intel's manual says of the instructions that the kernels use,
   faults included. Put before the kernels by `-include`, with __AMX_TILE__ and __AMX_BF16__ defined. */
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#ifndef AMX_MODEL_CRASHES
#define AMX_MODEL_CRASHES 0
#endif
#ifndef AMX_MODEL_ERRS
#define AMX_MODEL_ERRS 0
#endif

typedef struct {
  int rows, row_bytes;
  uint8_t data[16][64];
} ModelTile;

static __thread ModelTile model_tiles[8];
static __thread int model_configured;

/* As the processor does: an illegal instruction, or one with operands that do not fit. */
static inline void model_check(int right) {
  if (!right) __builtin_trap();
}

static void model_load_config(const void *from) {
  const uint8_t *config = from;
  model_check(config[0] == 1 && config[1] == 0 && !AMX_MODEL_CRASHES);
  for (int i = 2; i < 16; i++) model_check(config[i] == 0);
  for (int t = 0; t < 8; t++) {
    uint16_t bytes;
    memcpy(&bytes, config + 16 + 2 * t, 2);
    model_check(config[48 + t] <= 16 && bytes <= 64 && (config[48 + t] > 0) == (bytes > 0));
    model_tiles[t] = (ModelTile){config[48 + t], bytes, {{0}}};
  }
  model_configured = 1;
}

static ModelTile *model_tile(int t) {
  model_check(model_configured && t >= 0 && t < 8 && model_tiles[t].rows > 0);
  return &model_tiles[t];
}

static void model_load(int t, const void *from, long stride) {
  ModelTile *tile = model_tile(t);
  memset(tile->data, 0, sizeof tile->data);
  for (int row = 0; row < tile->rows; row++)
    memcpy(tile->data[row], (const char *)from + row * stride, tile->row_bytes);
}

static void model_store(int t, void *to, long stride) {
  const ModelTile *tile = model_tile(t);
  for (int row = 0; row < tile->rows; row++) memcpy((char *)to + row * stride, tile->data[row], tile->row_bytes);
}

static inline float model_value(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static void model_products(int t_c, int t_a, int t_b) {
  ModelTile *c = model_tile(t_c);
  const ModelTile *a = model_tile(t_a), *b = model_tile(t_b);
  model_check(a->rows == c->rows && b->row_bytes == c->row_bytes && a->row_bytes == 4 * b->rows);
  for (int m = 0; m < c->rows; m++) {
    const uint16_t *left = (const uint16_t *)a->data[m];
    float *sums = (float *)c->data[m];
    for (int k = 0; k < b->rows; k++) {
      const uint16_t *right = (const uint16_t *)b->data[k];
      for (int n = 0; n < c->row_bytes / 4; n++)
        sums[n] += model_value(left[2 * k]) * model_value(right[2 * n]) +
                   (AMX_MODEL_ERRS ? 0 : model_value(left[2 * k + 1]) * model_value(right[2 * n + 1]));
    }
  }
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig model_load_config
#define _tile_release() ((void)(model_configured = 0))
#define _tile_loadd model_load
#define _tile_stored model_store
#define _tile_zero(t) memset(model_tile(t)->data, 0, sizeof(model_tile(t)->data))
#define _tile_dpbf16ps model_products
