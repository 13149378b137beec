"""Models as data: names, shapes, initial weights and schema need numpy only; torch builds and runs them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agent.core.seeding import generator
from agent.errors import ConfigError, TrainingError
from agent.learning.layers import (
    FLATTEN,
    HALVE,
    RELU,
    Conv,
    GroupNorm,
    Layer,
    Linear,
    ParameterSpec,
    Plain,
    require_torch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from agent.core.types import ModelShape, Params

Shape = tuple[int, int, int]
"""Channels, height, width of one input."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A feed-forward model: what it takes, how many classes it tells apart, and its layers in order."""

    name: str
    input_shape: Shape
    classes: int
    layers: tuple[Layer, ...]


def gn_lenet(input_shape: Shape, classes: int) -> ModelSpec:
    """LeNet with GroupNorm, as in decentralizepy: 89,834 parameters at (3, 32, 32) and 10 classes."""
    channels, height, width = _at_least(8, "gn-lenet", input_shape)
    layers: list[Layer] = []
    for outputs in (32, 32, 64):
        layers += [Conv(channels, outputs, 5, 2), GroupNorm(2, outputs), RELU, HALVE]
        channels, height, width = outputs, height // 2, width // 2
    layers += [FLATTEN, Linear(channels * height * width, classes)]
    return ModelSpec("gn-lenet", input_shape, classes, tuple(layers))


def femnist_cnn(input_shape: Shape, classes: int) -> ModelSpec:
    """LEAF's FEMNIST network: 1,690,046 parameters at (1, 28, 28) and 62 classes."""
    channels, height, width = _at_least(4, "femnist-cnn", input_shape)
    layers: list[Layer] = []
    for outputs in (32, 64):
        layers += [Conv(channels, outputs, 5, 2), RELU, HALVE]
        channels, height, width = outputs, height // 2, width // 2
    layers += [FLATTEN, Linear(channels * height * width, 512), RELU, Linear(512, classes)]
    return ModelSpec("femnist-cnn", input_shape, classes, tuple(layers))


def small_cnn(input_shape: Shape, classes: int) -> ModelSpec:
    """Two convolutions for any input: halved while 4 pixels are left, averaged to at most 4x4; 6,186 at (1, 8, 8)."""
    channels, height, width = _at_least(1, "small-cnn", input_shape)
    layers: list[Layer] = []
    for outputs in (16, 32):
        layers += [Conv(channels, outputs, 3, 1), GroupNorm(2, outputs), RELU]
        channels = outputs
        if min(height, width) >= 4:  # noqa: PLR2004  the docstring's 4
            layers.append(HALVE)
            height, width = height // 2, width // 2
    if max(height, width) > 4:  # noqa: PLR2004  the docstring's 4
        height, width = min(height, 4), min(width, 4)
        layers.append(Plain("AdaptiveAvgPool2d", ((height, width),)))
    layers += [FLATTEN, Linear(channels * height * width, classes)]
    return ModelSpec("small-cnn", input_shape, classes, tuple(layers))


MODELS: dict[str, Callable[[Shape, int], ModelSpec]] = {
    "gn-lenet": gn_lenet,
    "femnist-cnn": femnist_cnn,
    "small-cnn": small_cnn,
}


def model_spec(shape: ModelShape) -> ModelSpec:
    """Return the registered model of that name; ConfigError when there is none, or it cannot take the input."""
    if shape.name not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise ConfigError(
            f"model.name: no model {shape.name!r}; use one of {known}, or your own `package.module:function`"
        )
    if shape.classes < 2:  # noqa: PLR2004  one class leaves nothing to learn
        raise ConfigError(f"model.classes is {shape.classes}; a classifier needs at least 2")
    return MODELS[shape.name](shape.input_shape, shape.classes)


def _at_least(pixels: int, name: str, input_shape: Shape) -> Shape:
    """Return `input_shape` if the model can take it, else raise ConfigError."""
    channels, height, width = input_shape
    if channels < 1 or min(height, width) < pixels:
        raise ConfigError(
            f"model.input_shape is {list(input_shape)}; {name} needs channels, height, width of at least "
            f"[1, {pixels}, {pixels}]; for smaller inputs take small-cnn"
        )
    return input_shape


def parameters(spec: ModelSpec) -> tuple[ParameterSpec, ...]:
    """Return the model's tensors in the order of the flat vector, named as in torch.nn.Sequential."""
    return tuple(
        ParameterSpec(f"{index}.{tensor.name}", tensor.shape, tensor.fan_in, tensor.constant)
        for index, layer in enumerate(spec.layers)
        for tensor in layer.parameters()
    )


def n_params(tensors: Iterable[ParameterSpec]) -> int:
    """Return the length of the flat vector."""
    return sum(math.prod(tensor.shape) for tensor in tensors)


def schema_hash(tensors: Iterable[ParameterSpec]) -> bytes:
    """Return 8 bytes of SHA-256 over names and shapes: models that differ in it cannot be averaged."""
    text = "\n".join(f"{tensor.name} {'x'.join(map(str, tensor.shape))}" for tensor in tensors)
    return hashlib.sha256(text.encode()).digest()[:8]


def initial_params(spec: ModelSpec, run_seed: int) -> Params:
    """Return the weights that every node of a run starts from, distributed as torch's own; shape (n_params,)."""
    return np.concatenate([_draw(tensor, run_seed) for tensor in parameters(spec)])


def _draw(tensor: ParameterSpec, run_seed: int) -> Params:
    size = math.prod(tensor.shape)
    if tensor.fan_in is None:
        return np.full(size, tensor.constant, dtype=np.float32)
    bound = 1.0 / math.sqrt(tensor.fan_in)
    draws = generator(run_seed, "init", tensor.name).random(size)
    return ((2.0 * draws - 1.0) * bound).astype(np.float32)


def build(spec: ModelSpec) -> nn.Module:
    """Build the model in torch; its parameters come in the order of `parameters(spec)`."""
    nn = require_torch().nn
    return nn.Sequential(
        *(getattr(nn, kind)(*arguments) for kind, arguments in (layer.call() for layer in spec.layers))
    )


def load_params(module: nn.Module, params: Params) -> None:
    """Copy the flat vector, shape (n_params,), into the module; TrainingError when the length differs."""
    torch = require_torch()
    tensors = list(module.parameters())
    wanted = sum(tensor.numel() for tensor in tensors)
    if params.shape != (wanted,):
        raise TrainingError(f"the model has {wanted} parameters, the vector has shape {params.shape}")
    source = torch.from_numpy(np.array(params, dtype=np.float32))
    with torch.no_grad():
        for tensor, part in zip(tensors, source.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def dump_params(module: nn.Module) -> Params:
    """Return a read-only copy of the module's parameters as one little-endian float32 vector, shape (n_params,)."""
    flat = np.concatenate([tensor.detach().numpy().ravel() for tensor in module.parameters()]).astype("<f4")
    flat.setflags(write=False)
    return flat
