"""The layers that models are made of: their tensors as data, and torch only where one is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from agent.errors import TrainingError


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One tensor of a model; drawn from uniform +-1/sqrt(fan_in), or filled with `constant` where fan_in is None."""

    name: str
    shape: tuple[int, ...]
    fan_in: int | None = None
    constant: float = 0.0


Call = tuple[str, tuple[object, ...]]
"""The name of a class in torch.nn, and its arguments."""


class Layer(Protocol):
    """One step of a model."""

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Return the layer's tensors in torch's order."""

    def call(self) -> Call:
        """Return what makes the layer in torch."""


@dataclass(frozen=True, slots=True)
class Conv:
    """Square convolution with stride 1."""

    inputs: int
    outputs: int
    kernel: int
    padding: int

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Return weight and bias."""
        fan_in = self.inputs * self.kernel**2
        weight = (self.outputs, self.inputs, self.kernel, self.kernel)
        return ParameterSpec("weight", weight, fan_in), ParameterSpec("bias", (self.outputs,), fan_in)

    def call(self) -> Call:
        """Return a Conv2d."""
        return "Conv2d", (self.inputs, self.outputs, self.kernel, 1, self.padding)


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """Normalisation within a sample: unlike batch norm it has no running statistics that nodes would not share."""

    groups: int
    channels: int

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Return weight (ones) and bias (zeros)."""
        return ParameterSpec("weight", (self.channels,), constant=1.0), ParameterSpec("bias", (self.channels,))

    def call(self) -> Call:
        """Return a GroupNorm."""
        return "GroupNorm", (self.groups, self.channels)


@dataclass(frozen=True, slots=True)
class Linear:
    """Fully connected layer."""

    inputs: int
    outputs: int

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Return weight and bias."""
        weight = ParameterSpec("weight", (self.outputs, self.inputs), self.inputs)
        return weight, ParameterSpec("bias", (self.outputs,), self.inputs)

    def call(self) -> Call:
        """Return a Linear."""
        return "Linear", (self.inputs, self.outputs)


@dataclass(frozen=True, slots=True)
class Plain:
    """A layer without parameters: the name of a class in torch.nn and its arguments."""

    kind: str
    arguments: tuple[object, ...] = ()

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Return nothing."""
        return ()

    def call(self) -> Call:
        """Return that class and those arguments."""
        return self.kind, self.arguments


RELU = Plain("ReLU")
HALVE = Plain("MaxPool2d", (2,))
FLATTEN = Plain("Flatten")


def require_torch() -> Any:
    """Return the torch module; TrainingError with the way out where this device has none that loads."""
    try:
        import torch
    except (ImportError, OSError) as error:
        raise TrainingError(
            f"torch cannot be imported ({error}); install the extra `torch`, or the build made for this board"
        ) from error
    return torch
