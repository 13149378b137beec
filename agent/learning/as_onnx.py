"""A learnt model as ONNX, by torch's exporter of TorchScript graphs.

That exporter is in every torch that this project admits, needs no package but `onnx`, and writes the same graph with
all of them; the newer one, of torch.export, needs onnxscript and has another interface in torch before 2.5.
"""

from __future__ import annotations

import inspect
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import TrainingError
from agent.learning.deployed import deploy
from agent.learning.layers import require_torch
from agent.learning.learnt import EXAMPLES, Learnt, Opened, Written, first_line, quiet

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

OPSET = 17
"""Of 2022: every onnxruntime from 1.12 on runs it."""
_POOL = "aten::adaptive_avg_pool2d"
_ERRORS_ONLY = 3


def write(learnt: Learnt) -> Written:
    """Return the file, its normalisation inside: `input` (n, c, h, w) of float32, `scores` and `probabilities`."""
    import onnx

    graph, notes = _convert(learnt)
    model = onnx.load_from_string(graph)
    metadata = learnt.metadata(in_graph=True, conversion="trace")
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return Written(model.SerializeToString(), metadata, tuple(notes))


def _convert(learnt: Learnt) -> tuple[bytes, list[str]]:
    """Trace the module and return its graph, and what a trace could not see."""
    torch, buffer = require_torch(), io.BytesIO()
    deployed = deploy(learnt.module(), learnt.normalisation)
    outputs = ["scores", "probabilities"]
    options = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    try:
        with quiet() as notes:
            pool = torch.onnx.symbolic_helper.parse_args("v", "is")(_adaptive_pool)
            torch.onnx.register_custom_op_symbolic(_POOL, pool, OPSET)
            torch.onnx.export(
                deployed,
                (torch.from_numpy(learnt.stored(EXAMPLES)),),
                buffer,
                input_names=["input"],
                output_names=outputs,
                dynamic_axes={name: {0: "n"} for name in ("input", *outputs)},
                opset_version=OPSET,
                **options,
            )
    except Exception as error:
        raise TrainingError(
            f"model.name {learnt.shape.name}: torch cannot write it as ONNX ({first_line(error)}); try another --format"
        ) from error
    finally:
        torch.onnx.unregister_custom_op_symbolic(_POOL, OPSET)
    return buffer.getvalue(), notes


def _adaptive_pool(graph: Any, x: Any, size: list[int]) -> Any:
    """Average to any size: ONNX has windows of one size only; where sizes differ, torch's own become two matrices."""
    torch, sizes = require_torch(), x.type().varyingSizes()
    (height, width), (rows, columns) = sizes[-2:], size
    if height % rows == width % columns == 0:
        window = [height // rows, width // columns]
        return graph.op("AveragePool", x, kernel_shape_i=window, strides_i=window)
    pool = torch.nn.functional.adaptive_avg_pool1d
    down = graph.op("Constant", value_t=pool(torch.eye(height), rows).T.contiguous())
    across = graph.op("Constant", value_t=pool(torch.eye(width), columns))
    return graph.op("MatMul", graph.op("MatMul", down, x), across)


def read(_: Learnt, path: Path) -> Opened:
    """Open a file of `write` with onnxruntime, or, where that is not installed, with onnx's own slow reference."""
    import onnx

    metadata = {item.key: item.value for item in onnx.load(path).metadata_props}
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
        runtime = f"onnx {onnx.__version__}'s reference, onnxruntime is not installed"
    else:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        runtime = f"onnxruntime {onnxruntime.__version__}"

    def scores(stored: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(session.run(["scores"], {"input": stored})[0])

    return Opened(metadata, scores, runtime)
