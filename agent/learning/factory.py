"""The user's own model factory, and the one face (`ModelInfo`) that hides which kind of model a run has."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.core.seeding import seed64
from agent.errors import ConfigError, TrainingError
from agent.learning.layers import ParameterSpec, require_torch
from agent.learning.model import build, dump_params, initial_params, model_spec, n_params, parameters, schema_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from agent.core.types import ModelShape, Params


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the rest of the agent needs to know of a model: its length, its schema, and where a run starts."""

    n_params: int
    schema_hash: bytes
    initial_params: Params = field(compare=False, repr=False)


def is_factory(name: str) -> bool:
    """Tell whether `name` means a user's `package.module:function`, known only where torch is."""
    return ":" in name


def describe(shape: ModelShape, run_seed: int) -> ModelInfo:
    """Return what a run with this model starts from; needs torch for a user's factory only."""
    if is_factory(shape.name):
        tensors, start = describe_factory(shape, run_seed)
    else:
        spec = model_spec(shape)
        tensors, start = parameters(spec), initial_params(spec, run_seed)
    return ModelInfo(n_params(tensors), schema_hash(tensors), start)


def build_module(shape: ModelShape, run_seed: int) -> nn.Module:
    """Build a registered or a user's model in torch; equal seeds give equal constants that a factory draws."""
    if is_factory(shape.name):
        return _build_factory(shape, run_seed)
    return build(model_spec(shape))


def describe_factory(shape: ModelShape, run_seed: int) -> tuple[tuple[ParameterSpec, ...], Params]:
    """Return the tensors of a user's model and its own initial weights, drawn by torch from the run's seed.

    Equal only between torch builds that draw alike: a fleet with a factory should carry one torch version.
    """
    module = _build_factory(shape, run_seed)
    tensors = tuple(ParameterSpec(name, tuple(tensor.shape)) for name, tensor in module.named_parameters())
    return tensors, dump_params(module)


def _build_factory(shape: ModelShape, run_seed: int) -> nn.Module:
    torch = require_torch()
    factory = _resolve(shape.name)
    torch.manual_seed(seed64(run_seed, "init", shape.name))
    try:
        module = factory(shape.input_shape, shape.classes)
    except Exception as error:
        raise TrainingError(
            f"model.name: {shape.name}({shape.input_shape}, {shape.classes}) failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise TrainingError(
            f"model.name: {shape.name} returned a {type(module).__name__}; it must return a torch.nn.Module"
        )
    _check_state(shape.name, module)
    _check_output(shape, module)
    return module


def _resolve(name: str) -> Callable[..., Any]:
    """Import `package.module:function`."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ConfigError(f"model.name is {name!r}; write your factory as `package.module:function`")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise TrainingError(f"model.name: {module_name} needs {error.name}, which is not installed") from error
        raise ConfigError(
            f"model.name: no module {error.name!r}; install it, or put its folder on PYTHONPATH"
        ) from error
    except Exception as error:
        raise TrainingError(f"model.name: importing {module_name} failed: {type(error).__name__}: {error}") from error
    factory: Callable[..., Any] | None = getattr(module, function_name, None)
    if factory is None:
        raise ConfigError(f"model.name: {module_name} ({module.__file__}) has no {function_name!r}")
    if not callable(factory):
        raise ConfigError(
            f"model.name: {name} is a {type(factory).__name__}; it must be a function(input_shape, classes)"
        )
    return factory


def _check_state(name: str, module: Any) -> None:
    """Raise TrainingError when averaging the float32 parameters would not average the whole model."""
    torch = require_torch()
    wrong = [
        key
        for key, tensor in module.named_parameters()
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or torch.nn.parameter.is_lazy(tensor)
    ]
    if wrong or not any(True for _ in module.parameters()):
        raise TrainingError(
            f"model.name: {name} must have parameters, all of them float32, on the CPU and of known shape; "
            f"not so: {', '.join(wrong) or 'it has none'}"
        )
    shared = {key for key, _ in module.named_parameters(remove_duplicate=False)}
    unshared = [key for key in module.state_dict() if key not in shared]
    if unshared:
        raise TrainingError(
            f"model.name: {name} keeps state that nodes would not share: {', '.join(unshared)}; replace batch norm by "
            "group norm, and register constants with persistent=False"
        )


def _check_output(shape: ModelShape, module: Any) -> None:
    """Raise TrainingError unless two inputs give two rows of scores."""
    torch = require_torch()
    module.eval()
    try:
        with torch.no_grad():
            scores = module(torch.zeros(2, *shape.input_shape))
    except Exception as error:
        raise TrainingError(
            f"model.name: {shape.name} cannot take inputs of shape {shape.input_shape}: {type(error).__name__}: {error}"
        ) from error
    returned = tuple(getattr(scores, "shape", ()))
    if returned != (2, shape.classes):
        raise TrainingError(
            f"model.name: {shape.name} must return scores of shape [samples, {shape.classes}]; for 2 samples it "
            f"returned {list(returned)}"
        )
