/* Cross entropy of scores, its gradient, and top-1. */
#pragma once
#include "vec.h"

/* Sum the loss over the first `count` lanes and write the gradient of loss / n, zero in the other lanes. */
INLINE double cross_entropy(int classes, const vec *scores, const int64_t *y, int count, int n, vec *gradient) {
  double loss = 0;
  memset(gradient, 0, sizeof(vec) * classes);
  for (int lane = 0; lane < count; lane++) {
    float most = scores[0][lane], total = 0;
    for (int c = 1; c < classes; c++) most = scores[c][lane] > most ? scores[c][lane] : most;
    for (int c = 0; c < classes; c++) total += gradient[c][lane] = expf(scores[c][lane] - most);
    loss += logf(total) - (scores[y[lane]][lane] - most);
    for (int c = 0; c < classes; c++) gradient[c][lane] /= total * n;
    gradient[y[lane]][lane] -= 1.0f / n;
  }
  return loss;
}

/* Count the lanes whose first largest score is their own class's. */
INLINE int64_t right(int classes, const vec *scores, const int64_t *y, int count) {
  int64_t found = 0;
  for (int lane = 0; lane < count; lane++) {
    int best = 0;
    for (int c = 1; c < classes; c++)
      if (scores[c][lane] > scores[best][lane]) best = c;
    found += best == y[lane];
  }
  return found;
}
