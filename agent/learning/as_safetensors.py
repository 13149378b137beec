"""A learnt model as safetensors: its tensors by name; the layers, where they are data, stand in the metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from agent.learning.factory import build_module, is_factory
from agent.learning.layers import require_torch
from agent.learning.learnt import Learnt, Opened, Written
from agent.learning.model import load_params, model_spec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


def write(learnt: Learnt) -> Written:
    """Return the file; what a factory's module keeps beside its parameters goes along under its own name."""
    from safetensors.numpy import save

    module = learnt.module()
    tensors, constants = dict(module.named_parameters()), dict(module.named_buffers())
    layers = [] if is_factory(learnt.shape.name) else [layer.call() for layer in model_spec(learnt.shape).layers]
    metadata = learnt.metadata(
        in_graph=False,
        parameters=json.dumps(list(tensors)),
        constants=json.dumps(list(constants)),
        layers=json.dumps(layers),
    )
    arrays = {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in (tensors | constants).items()}
    return Written(save(arrays, metadata), metadata)


def read(learnt: Learnt, path: Path) -> Opened:
    """Open a file of `write`, with the module built anew and nothing in it but what the file holds."""
    import safetensors

    torch = require_torch()
    module = build_module(learnt.shape, learnt.seed).eval()
    with safetensors.safe_open(path, "numpy") as file:
        metadata: dict[str, str] = file.metadata()
        load_params(
            module, np.concatenate([file.get_tensor(name).ravel() for name in json.loads(metadata["parameters"])])
        )

    def scores(stored: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(learnt.normalisation.apply(stored))))

    return Opened(metadata, scores, f"safetensors {safetensors.__version__}")
