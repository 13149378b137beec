/* Rows of the product of a mixing matrix with stacked models: some columns of all rows at a time, so that the models stay
 * in the cache, and sums in registers. Products are rounded before they are added, as numpy does it: no FMA. */
#ifndef SKIPTRAIN_MIX_H
#define SKIPTRAIN_MIX_H

#include <stdint.h>

enum { MIX_COLUMNS = 512, MIX_WIDTH = 64 };

/* Columns [from, to) of outs[i] = sum of weights[k] * rows[k] over first[i] <= k < first[i + 1], in that order. */
__attribute__((optimize("fp-contract=off")))
void mix_rows(const float *const *rows, const float *weights, const int64_t *first, float *const *outs, int64_t count,
              int64_t from, int64_t to)
{
    for (int64_t begin = from; begin < to; begin += MIX_COLUMNS) {
        const int64_t end = begin + MIX_COLUMNS < to ? begin + MIX_COLUMNS : to;
        for (int64_t i = 0; i < count; i++) {
            int64_t j = begin;
            for (; j + MIX_WIDTH <= end; j += MIX_WIDTH) {
                float sum[MIX_WIDTH];
                for (int l = 0; l < MIX_WIDTH; l++)
                    sum[l] = rows[first[i]][j + l] * weights[first[i]];
                for (int64_t k = first[i] + 1; k < first[i + 1]; k++) {
                    const float *row = rows[k] + j, weight = weights[k];
                    for (int l = 0; l < MIX_WIDTH; l++)
                        sum[l] = sum[l] + row[l] * weight;
                }
                for (int l = 0; l < MIX_WIDTH; l++)
                    outs[i][j + l] = sum[l];
            }
            for (; j < end; j++) {
                float sum = rows[first[i]][j] * weights[first[i]];
                for (int64_t k = first[i] + 1; k < first[i + 1]; k++)
                    sum = sum + rows[k][j] * weights[k];
                outs[i][j] = sum;
            }
        }
    }
}

#endif
