/* GroupNorm, ReLU and MaxPool2d(2) after a convolution, in one pass each way; any of them may be absent. */
#pragma once
#include "block.h"

#define EPSILON 1e-5f

typedef struct { /* of one channel: z = y * scale + shift */
  vec mean, inverse, scale, shift;
} Norm;

typedef struct { /* sums over positions, of one channel */
  vec gamma, beta, bias;
} Gradient;

/* Mean and sum of squared differences of a channel, taken relative to its first value so that nothing cancels. */
INLINE void channel_moments(Block b, const vec *y, vec *mean, vec *squares) {
  const float n = out_height(b) * out_width(b);
  const vec origin = y[0], zero = {0};
  vec first[4] = {zero, zero, zero, zero}, second[4] = {zero, zero, zero, zero};
  for (int row = 0; row < out_height(b); row++) {
    UNROLL for (int column = 0; column < out_width(b); column++) {
      const vec d = y[row * y_stride(b) + column] - origin;
      first[column % 4] += d;
      second[column % 4] += d * d;
    }
  }
  const vec s = (first[0] + first[1]) + (first[2] + first[3]), q = (second[0] + second[1]) + (second[2] + second[3]);
  *mean = origin + s / n;
  *squares = q - s * s / n;
}

/* Fill l.moments: mean and inverse standard deviation of every group of channels. */
INLINE void moments(Block b, Lanes l) {
  const int channels = b.groups ? b.outputs / b.groups : 1, plane = out_height(b) * y_stride(b);
  for (int group = 0; group < b.groups; group++) {
    vec means[channels], mean = {0}, squares = {0};
    for (int c = 0; c < channels; c++) {
      vec q;
      channel_moments(b, l.y + (group * channels + c) * plane, &means[c], &q);
      mean += means[c];
      squares += q;
    }
    mean /= (float)channels;
    for (int c = 0; c < channels; c++)
      squares += (means[c] - mean) * (means[c] - mean) * (float)(out_height(b) * out_width(b));
    vec inverse;
    for (int i = 0; i < LANES; i++)
      inverse[i] = 1 / sqrtf(squares[i] / (channels * out_height(b) * out_width(b)) + EPSILON);
    l.moments[2 * group] = mean;
    l.moments[2 * group + 1] = inverse;
  }
}

INLINE Norm norm(Block b, Lanes l, const float *gamma, const float *beta, int c) {
  if (!b.groups) return (Norm){splat(0), splat(1), splat(1), splat(0)};
  const int group = c / (b.outputs / b.groups);
  const vec mean = l.moments[2 * group], inverse = l.moments[2 * group + 1], scale = inverse * gamma[c];
  return (Norm){mean, inverse, scale, beta[c] - mean * scale};
}

INLINE void activate(Block b, Lanes l, const float *gamma, const float *beta) {
  moments(b, l);
  const int stride = y_stride(b), height = pooled_height(b), width = pooled_width(b), step = b.pool ? 2 : 1;
  for (int c = 0; c < b.outputs; c++) {
    const Norm n = norm(b, l, gamma, beta, c);
    for (int row = 0; row < height; row++)
      for (int column = 0; column < width; column++) {
        const vec *y = l.y + (c * out_height(b) + row * step) * stride + column * step;
        vec z = y[0] * n.scale + n.shift;
        if (b.pool) {
          z = larger(z, y[1] * n.scale + n.shift);
          z = larger(z, y[stride] * n.scale + n.shift);
          z = larger(z, y[stride + 1] * n.scale + n.shift);
        }
        l.out[(c * height + row) * (width + b.border) + column] = b.relu ? larger(splat(0), z) : z;
      }
  }
}

/* From d, the gradient of one output, to that of the normalised values it came from: the first largest one has it. */
INLINE void spread(Block b, Norm n, const vec *y, vec d, vec *e) {
  const int stride = y_stride(b), at[4] = {0, 1, stride, stride + 1}, count = b.pool ? 4 : 1;
  vec z[4];
  UNROLL for (int j = 0; j < count; j++) z[j] = y[at[j]] * n.scale + n.shift;
  vec most = z[0];
  UNROLL for (int j = 1; j < count; j++) most = larger(most, z[j]);
  ivec left = b.relu ? most > 0 : most == most;
  UNROLL for (int j = 0; j < count; j++) {
    const ivec hit = left & (z[j] == most);
    left &= ~hit;
    e[j] = (vec)(hit & (ivec)d);
  }
}

/* Return the sums that gamma's and beta's gradients are, for one channel. */
INLINE Gradient channel_sums(Block b, Lanes l, Norm n, int c) {
  const int stride = y_stride(b), height = pooled_height(b), width = pooled_width(b), step = b.pool ? 2 : 1, count = step * step;
  const int at[4] = {0, 1, stride, stride + 1};
  Gradient g = {{0}, {0}, {0}};
  for (int row = 0; row < height; row++)
    for (int column = 0; column < width; column++) {
      const vec *y = l.y + (c * out_height(b) + row * step) * stride + column * step;
      vec e[4], total = {0}, weighted = {0};
      spread(b, n, y, l.d_out[(c * height + row) * width + column], e);
      UNROLL for (int j = 0; j < count; j++) {
        total += e[j];
        weighted += e[j] * (y[at[j]] - n.mean);
      }
      g.beta += total;
      g.gamma += weighted;
    }
  g.gamma *= n.inverse;
  return g;
}

/* Replace a channel of y by its gradient scale * e + constant + slope * (y - mean); return the gradient's sum. */
INLINE vec channel_gradient(Block b, Lanes l, Norm n, int c, vec constant, vec slope) {
  const int stride = y_stride(b), height = pooled_height(b), width = pooled_width(b), step = b.pool ? 2 : 1, count = step * step;
  const int at[4] = {0, 1, stride, stride + 1};
  vec total = {0};
  vec *plane = l.y + c * out_height(b) * stride;
  for (int row = 0; row < height; row++)
    for (int column = 0; column < width; column++) {
      vec *y = plane + row * step * stride + column * step, e[4], part = {0};
      spread(b, n, y, l.d_out[(c * height + row) * width + column], e);
      UNROLL for (int j = 0; j < count; j++) {
        y[at[j]] = n.scale * e[j] + (constant + slope * (y[at[j]] - n.mean));
        part += y[at[j]];
      }
      total += part;
    }
  for (int row = 0; row < out_height(b); row++) /* what the pool leaves over */
    for (int column = row < height * step ? width * step : 0; column < out_width(b); column++) {
      vec *y = plane + row * stride + column;
      *y = constant + slope * (*y - n.mean);
      total += *y;
    }
  return total;
}

/* Replace l.y by its gradient, and add to the gradients of the channels' parameters. */
INLINE void activate_backward(Block b, Lanes l, const float *gamma, const float *beta, Gradient *gradient) {
  const int groups = b.groups ? b.groups : 1, channels = b.outputs / groups;
  const float n = channels * out_height(b) * out_width(b);
  for (int group = 0; group < groups; group++) {
    vec first = {0}, second = {0}, constant = {0}, slope = {0};
    for (int c = group * channels; b.groups && c < (group + 1) * channels; c++) {
      const Gradient g = channel_sums(b, l, norm(b, l, gamma, beta, c), c);
      gradient[c].gamma += g.gamma;
      gradient[c].beta += g.beta;
      first += gamma[c] * g.beta;
      second += gamma[c] * g.gamma;
    }
    if (b.groups) {
      const vec inverse = l.moments[2 * group + 1];
      constant = -inverse * first / n;
      slope = -inverse * inverse * second / n;
    }
    for (int c = group * channels; c < (group + 1) * channels; c++)
      gradient[c].bias += channel_gradient(b, l, norm(b, l, gamma, beta, c), c, constant, slope);
  }
}

/* Take one step for the convolution's bias and the normalisation's parameters. */
INLINE void step_channels(Block b, const Gradient *gradient, float lr, float *bias, float *gamma, float *beta) {
  for (int c = 0; c < b.outputs; c++) {
    bias[c] -= lr * sum(gradient[c].bias);
    if (b.groups) {
      gamma[c] -= lr * sum(gradient[c].gamma);
      beta[c] -= lr * sum(gradient[c].beta);
    }
  }
}
