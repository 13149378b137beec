"""A model as steps that the kernels have: convolutions with what follows them at once, pools, full layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from agent.errors import ConfigError
from agent.learning.layers import Conv, GroupNorm, Layer, Linear, Plain
from agent.learning.model import ModelSpec

_TILE = 8
"""Channels that a convolution's outputs must be a multiple of, unless it is the last."""


@dataclass(slots=True)
class Block:
    """A convolution with what follows it at once; names as in kernels/block.h."""

    conv: Conv
    height: int
    width: int
    groups: int = 0
    relu: bool = False
    pool: bool = False

    def after(self) -> tuple[int, int, int]:
        """Return channels, height and width of what comes out."""
        height, width = self.sides()
        return self.conv.outputs, height // (1 + self.pool), width // (1 + self.pool)

    def sides(self) -> tuple[int, int]:
        """Return height and width of what the convolution gives."""
        shrink = 2 * self.conv.padding - self.conv.kernel + 1
        return self.height + shrink, self.width + shrink


@dataclass(slots=True)
class Average:
    """An adaptive average pool, from and to (channels, height, width)."""

    before: tuple[int, int, int]
    to: tuple[int, int]

    def after(self) -> tuple[int, int, int]:
        """Return channels, height and width of what comes out."""
        return self.before[0], *self.to


@dataclass(slots=True)
class Full:
    """A fully connected layer, with ReLU behind it or not."""

    linear: Linear
    relu: bool = False


Step: TypeAlias = Block | Average | Full


def steps_of(spec: ModelSpec) -> list[Step]:
    """Return the model as steps that the kernels have; ConfigError where there is none for a layer in its place."""
    steps: list[Step] = []
    shape, flat = spec.input_shape, False
    for layer in spec.layers:
        last = steps[-1] if steps else None
        if isinstance(layer, Conv) and not flat and layer.outputs % _TILE == 0 and layer.kernel <= _TILE:
            steps.append(Block(layer, *shape[1:]))
        elif isinstance(layer, Linear):
            steps.append(Full(layer))
        elif _is(layer, "AdaptiveAvgPool2d") and not flat:
            steps.append(Average(shape, _pair(layer)))
        elif _is(layer, "Flatten"):
            flat = True
        elif not _joined(last, layer):
            raise ConfigError(
                f"engine.kind native has no kernel for {layer.call()} where it stands in {spec.name}; use "
                "engine.kind stacked or sequential"
            )
        if steps and isinstance(steps[-1], Block | Average):
            shape = steps[-1].after()
    return steps


def _joined(last: Step | None, layer: Layer) -> bool:
    """Let the step before take the layer in; tell whether it can."""
    if isinstance(last, Block) and not last.pool:
        if isinstance(layer, GroupNorm) and not last.groups and not last.relu:
            last.groups = layer.groups
            return True
        if _is(layer, "ReLU"):
            last.relu = True
            return True
        if _is(layer, "MaxPool2d") and isinstance(layer, Plain) and layer.arguments == (2,):
            last.pool = True
            return True
    if isinstance(last, Full) and _is(layer, "ReLU"):
        last.relu = True
        return True
    return False


def _is(layer: Layer, kind: str) -> bool:
    return isinstance(layer, Plain) and layer.kind == kind


def _pair(layer: Layer) -> tuple[int, int]:
    """Return the two sides that an adaptive pool gives."""
    sides: Any = layer.call()[1][0]
    return int(sides[0]), int(sides[1])
