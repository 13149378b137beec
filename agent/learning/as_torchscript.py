"""A learnt model as TorchScript, which torch runs without any Python of ours: scripted, or traced where that fails."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import TrainingError
from agent.learning.deployed import deploy
from agent.learning.layers import require_torch
from agent.learning.learnt import EXAMPLES, Learnt, Opened, Written, first_line, quiet

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from torch import nn

_METADATA = "metadata.json"


def write(learnt: Learnt) -> Written:
    """Return the file, its normalisation inside; the metadata say whether it was scripted or traced."""
    jit, deployed, conversion = require_torch().jit, deploy(learnt.module(), learnt.normalisation), "script"
    notes: list[str] = []
    try:
        with quiet():
            script = jit.script(deployed)
    except Exception as error:  # noqa: BLE001  it raises whatever it stumbles over in a user's code
        conversion = "trace"
        notes.append(f"torch cannot script this model ({first_line(error)}); traced it instead, see docs/export.md")
        script = _trace(learnt, deployed, notes)
    metadata, buffer = learnt.metadata(in_graph=True, conversion=conversion), io.BytesIO()
    with quiet():
        jit.save(script, buffer, _extra_files={_METADATA: json.dumps(metadata)})
    return Written(buffer.getvalue(), metadata, tuple(notes))


def _trace(learnt: Learnt, deployed: nn.Module, notes: list[str]) -> Any:
    """Record what the module does with an example; `notes` gets what a record cannot hold."""
    torch = require_torch()
    example = torch.from_numpy(learnt.stored(EXAMPLES))
    try:
        with quiet() as seen, torch.no_grad():
            traced = torch.jit.trace(deployed, (example,), check_trace=False)
    except Exception as error:
        raise TrainingError(
            f"model.name {learnt.shape.name}: torch can neither script nor trace it: {first_line(error)}"
        ) from error
    notes += seen
    return traced


def read(_: Learnt, path: Path) -> Opened:
    """Open a file of `write`."""
    torch, files = require_torch(), {_METADATA: ""}
    script = torch.jit.load(str(path), _extra_files=files)

    def scores(stored: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(script(torch.from_numpy(stored))[0])

    return Opened(json.loads(files[_METADATA]), scores, f"torch {torch.__version__}")
