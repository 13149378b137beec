"""What a model's layers do to the shape of a sample, and how many operations a local step takes."""

from __future__ import annotations

import math
from typing import TypeAlias

from agent.learning.layers import Conv, GroupNorm, Layer, Linear, Plain
from agent.learning.model import ModelSpec

SampleShape: TypeAlias = tuple[int, ...]
"""(channels, height, width) of one sample, or (features,)."""


def sample_shapes(spec: ModelSpec) -> list[SampleShape]:
    """Return the shape of a sample before each layer, and after the last; ValueError for a layer not known here."""
    shapes: list[SampleShape] = [spec.input_shape]
    for layer in spec.layers:
        shapes.append(_after(layer, shapes[-1]))
    return shapes


def _after(layer: Layer, shape: SampleShape) -> SampleShape:
    if isinstance(layer, Conv):
        grown = 2 * layer.padding - layer.kernel + 1
        return layer.outputs, shape[1] + grown, shape[2] + grown
    if isinstance(layer, Linear):
        return (layer.outputs,)
    if isinstance(layer, GroupNorm) or layer == Plain("ReLU"):
        return shape
    if isinstance(layer, Plain) and layer.kind == "MaxPool2d" and isinstance(size := layer.arguments[0], int):
        return shape[0], shape[1] // size, shape[2] // size
    if isinstance(layer, Plain) and layer.kind == "AdaptiveAvgPool2d" and isinstance(size := layer.arguments[0], tuple):
        return shape[0], *size
    if layer == Plain("Flatten"):
        return (math.prod(shape),)
    raise ValueError(f"{layer} is not known here")


def step_flops(spec: ModelSpec, batch: int) -> int:
    """Return the floating-point operations of one local step in convolutions and linear layers.

    A product counts as two. Forward, gradient of weights and gradient of inputs cost the same, but nobody needs the
    gradient of the samples.
    """
    shapes = sample_shapes(spec)
    forward = [_forward_flops(layer, shapes[i + 1]) for i, layer in enumerate(spec.layers)]
    first = next((flops for flops in forward if flops), 0)
    return batch * (3 * sum(forward) - first)


def _forward_flops(layer: Layer, after: SampleShape) -> int:
    if isinstance(layer, Conv):
        return 2 * math.prod(after) * layer.inputs * layer.kernel**2
    return 2 * layer.inputs * layer.outputs if isinstance(layer, Linear) else 0
