"""Learnt models as files, each opened by the other runtime, in processes that have nothing of this project."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from agent.core.types import ModelShape
from agent.errors import ConfigError, TrainingError
from agent.learning import export
from agent.learning.data import AS_THEY_ARE, BYTES, Normalisation
from agent.learning.deployed import deploy
from agent.learning.export import FORMATS, TOLERANCE, compare, require
from agent.learning.factory import describe
from agent.learning.learnt import Learnt
from agent.learning.sources import DIGITS, load
from agent.learning.trainer import TorchTrainer, TrainTask

NEAR = {"rtol": 1e-5, "atol": 1e-5}
MINE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, channels, classes):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 3)), nn.Dropout())
            self.head = nn.Linear(72, classes)
            self.register_buffer("pattern", torch.rand(72), persistent=False)

        def forward(self, x):
            return self.head(self.body(x).flatten(1) * self.pattern)

    class Unscriptable(Net):
        def forward(self, x, **unused):
            return super().forward(x)

    class Branching(Net):
        def forward(self, x, **unused):
            y = super().forward(x)
            return y if x.sum() > LIMIT else -y

    class Frozen(Net):
        def forward(self, x, **unused):
            return super().forward(x) * len(x)

    class Noisy(Net):
        def forward(self, x):
            return super().forward(x) + torch.rand(1)

    LIMIT = 0
    def make(shape, classes): return Net(shape[0], classes)
    def unscriptable(shape, classes): return Unscriptable(shape[0], classes)
    def branching(shape, classes): return Branching(shape[0], classes)
    def frozen(shape, classes): return Frozen(shape[0], classes)
    def noisy(shape, classes): return Noisy(shape[0], classes)
"""
MODELS = [
    ModelShape("small-cnn", (1, 8, 8), 10),
    ModelShape("small-cnn", (3, 28, 30), 4),
    ModelShape("gn-lenet", (3, 32, 32), 10),
    ModelShape("femnist-cnn", (1, 28, 28), 62),
    ModelShape("exported_model:make", (3, 11, 9), 5),
]


@pytest.fixture(autouse=True)
def _factories(tmp_path, monkeypatch):
    """Put a user's factories where they can be imported."""
    folder = tmp_path / "users"
    folder.mkdir()
    (folder / "exported_model.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "exported_model", raising=False)


def learnt(shape, normalisation=BYTES):
    """Return a model whose parameters are no longer the first ones."""
    start = describe(shape, 1).initial_params
    params = start + np.random.default_rng(5).normal(0, 0.05, start.size).astype(np.float32)
    names = tuple(f"ä, {number}" for number in range(shape.classes))
    return Learnt(shape, 1, params, normalisation, names, {"fleet": "f", "round": "7"})


def expected(model, stored):
    """Return the scores of the device's own module."""
    with torch.no_grad():
        return model.module()(torch.from_numpy(model.normalisation.apply(stored))).numpy()


def save(model, format_, folder):
    """Write a file and prove it; return its path."""
    written = FORMATS[format_].write(model)
    path = folder / f"model.{FORMATS[format_].suffix}"
    path.write_bytes(written.content)
    comparison = compare(model, format_, path, written.metadata)
    assert comparison.difference < TOLERANCE / 10
    return path, written


def elsewhere(script, folder, *arguments):
    """Run `script` in a process in which nothing of this project, and no user's model, can be imported."""
    guard = """
        import sys
        class Guard:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"agent", "sim_harness", "provisioning", "exported_model"}:
                    raise ImportError(f"{name} is not installed here")
        sys.meta_path.insert(0, Guard())
    """
    code = textwrap.dedent(guard) + textwrap.dedent(script)
    words = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize("shape", [*MODELS, ModelShape("small-cnn", (3, 32, 32), 4)], ids=str)
@pytest.mark.parametrize("normalisation", [BYTES, DIGITS, AS_THEY_ARE], ids=["bytes", "digits", "floats"])
def test_onnx_runs_elsewhere_with_what_the_file_says(tmp_path, shape, normalisation):
    """The other runtime takes stored values in batches of any size; all else an application needs is in the file."""
    model = learnt(shape, normalisation)
    session = onnxruntime.InferenceSession(str(save(model, "onnx", tmp_path)[0]))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(model.class_names)
    rule = json.loads(about["normalisation"])
    assert Normalisation(rule["scale"], rule["mean"], rule["std"]) == normalisation
    assert [(item.name, item.type, item.shape) for item in session.get_inputs()] == [
        ("input", "tensor(float)", ["n", *json.loads(about["input_shape"])])
    ]
    for count in (1, 7):
        stored = model.stored(count)
        scores, probabilities = session.run(["scores", "probabilities"], {"input": stored})
        np.testing.assert_allclose(scores, expected(model, stored), **NEAR)
        assert (scores.argmax(1) == expected(model, stored).argmax(1)).all()
        softmax = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(probabilities, softmax, **NEAR)


@pytest.mark.parametrize("shape", MODELS, ids=str)
def test_torchscript_runs_without_this_project(tmp_path, shape):
    """A fresh process with nothing but torch gives the same scores, for floats and for bytes."""
    model = learnt(shape)
    path, written = save(model, "torchscript", tmp_path)
    np.save(tmp_path / "stored.npy", model.stored(7))
    script = """
        import json, numpy, torch
        files = {"metadata.json": ""}
        model = torch.jit.load(sys.argv[1], _extra_files=files)
        stored = torch.from_numpy(numpy.load("stored.npy"))
        with torch.no_grad():
            numpy.save("scores.npy", model(stored)[0].numpy())
            assert torch.equal(model(stored.to(torch.uint8))[1], model(stored)[0].softmax(1))
            assert model(stored[:1])[0].shape[0] == 1
        print(json.dumps(json.loads(files["metadata.json"])))
    """
    assert json.loads(elsewhere(script, tmp_path, path)) == written.metadata
    assert written.metadata["conversion"] == "script"
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected(model, model.stored(7)), **NEAR)


@pytest.mark.parametrize("shape", MODELS[:-1], ids=str)
def test_safetensors_are_a_model_again_without_this_project(tmp_path, shape):
    """Layers, names, order and normalisation are in the file: torch and numpy do the rest."""
    model = learnt(shape)
    path, _ = save(model, "safetensors", tmp_path)
    np.save(tmp_path / "stored.npy", model.stored(7))
    script = """
        import json, numpy, torch
        from safetensors import safe_open
        from safetensors.numpy import load_file
        tensors = load_file(sys.argv[1])
        with safe_open(sys.argv[1], "numpy") as file:
            about = file.metadata()
        net = torch.nn.Sequential(*(getattr(torch.nn, kind)(*given) for kind, given in json.loads(about["layers"])))
        net.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
        rule = json.loads(about["normalisation"])
        stored = (numpy.load("stored.npy") / rule["scale"] - rule["mean"]) / rule["std"]
        with torch.no_grad():
            numpy.save("scores.npy", net.eval()(torch.from_numpy(stored.astype("float32"))).numpy())
        print(b"".join(tensors[name].tobytes() for name in json.loads(about["parameters"])).hex())
    """
    flat = bytes.fromhex(elsewhere(script, tmp_path, path))
    assert flat == model.params.astype("<f4").tobytes()
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected(model, model.stored(7)), **NEAR)


def test_safetensors_of_a_factory_hold_its_constants_too(tmp_path):
    """What a module keeps beside its parameters is in the file, apart from them."""
    from safetensors.numpy import load_file

    model = learnt(MODELS[-1])
    path, written = save(model, "safetensors", tmp_path)
    assert json.loads(written.metadata["constants"]) == ["pattern"]
    assert written.metadata["layers"] == "[]"
    assert np.array_equal(load_file(path)["pattern"], model.module().pattern.numpy())


@pytest.mark.parametrize("format_", list(FORMATS))
def test_a_file_says_whose_model_it_is(tmp_path, format_):
    """All formats carry the same words; the digest is the one of the parameters."""
    model = learnt(MODELS[0])
    metadata = save(model, format_, tmp_path)[1].metadata
    assert metadata.items() >= {"fleet": "f", "round": "7", "model": "small-cnn", "classes": "10"}.items()
    assert metadata["params_sha256"] == hashlib.sha256(model.params.astype("<f4").tobytes()).hexdigest()
    assert metadata["normalisation_in"] == ("application" if format_ == "safetensors" else "graph")
    assert all(isinstance(value, str) for value in metadata.values())


@pytest.mark.parametrize("normalisation", [BYTES, DIGITS, AS_THEY_ARE, Normalisation(3.0, 0.1, 0.7)])
def test_the_graph_normalises_bit_for_bit(normalisation):
    """No rounding of its own between a stored value and what training saw."""
    stored = np.arange(-50.0, 400.0, 0.25, dtype=np.float32).reshape(1, -1)
    inputs = deploy(torch.nn.Identity(), normalisation)(torch.from_numpy(stored))[0]
    assert np.array_equal(inputs.numpy(), normalisation.apply(stored))


def test_a_trained_model_is_as_good_through_onnxruntime(tmp_path):
    """Fed the raw pixels, 0 to 16, of the common test set it is exactly as accurate as the device says."""
    test, shape = load("digits", part="test"), MODELS[0]
    trainer = TorchTrainer(shape, load("digits"), load("digits").take(np.arange(9)), test, seed=1)
    params = trainer.train(TrainTask(0, describe(shape, 1).initial_params, 3, 400, 32, 0.1)).params
    evaluation = trainer.evaluate(params, 0)
    assert evaluation.accuracy is not None
    assert evaluation.accuracy > 0.9
    pixels = np.rint((test.x * 0.5 + 0.5) * 16)
    assert np.array_equal(DIGITS.apply(pixels), test.x)
    model = replace(learnt(shape, DIGITS), params=params)
    session = onnxruntime.InferenceSession(str(save(model, "onnx", tmp_path)[0]))
    scores = session.run(["scores"], {"input": pixels})[0]
    assert (scores.argmax(1) == test.y).mean() == evaluation.accuracy
    logs = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(test)), test.y]
    assert logs.mean() == pytest.approx(evaluation.loss, rel=1e-5)


def test_a_model_that_cannot_be_scripted_is_traced_and_says_so(tmp_path):
    """The fallback stands in the metadata and in a note; what it gives is right all the same."""
    model = learnt(ModelShape("exported_model:unscriptable", (3, 11, 9), 5))
    written = save(model, "torchscript", tmp_path)[1]
    assert written.metadata["conversion"] == "trace"
    assert [note.startswith("torch cannot script this model (NotSupportedError: ") for note in written.notes] == [True]


@pytest.mark.parametrize("format_", ["torchscript", "onnx"])
def test_what_a_trace_cannot_see_is_a_note_with_file_and_line(format_):
    """A branch on values is frozen; the user reads where it is, and no other warning."""
    written = FORMATS[format_].write(learnt(ModelShape("exported_model:branching", (3, 11, 9), 5)))
    assert written.notes[-1].endswith(
        "exported_model.py:22: Converting a tensor to a Python boolean might cause the trace to be incorrect"
    )
    assert len(written.notes) == (2 if format_ == "torchscript" else 1)


@pytest.mark.parametrize(
    ("function", "format_", "words"),
    [
        ("frozen", "onnx", "other scores than the module"),
        ("frozen", "torchscript", "other scores than the module"),
        ("noisy", "onnx", "other scores than the module"),
        ("noisy", "safetensors", "other scores than the module"),
    ],
)
def test_a_file_that_is_not_the_model_is_found_out(tmp_path, capfd, function, format_, words):
    """The number of inputs frozen into a trace, and a model that is never twice the same."""
    with pytest.raises(TrainingError, match=words):
        save(learnt(ModelShape(f"exported_model:{function}", (3, 11, 9), 5)), format_, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_cannot_be_opened_again_is_an_error(tmp_path):
    """So is one that says something else of itself."""
    model = learnt(MODELS[0])
    path, written = save(model, "onnx", tmp_path)
    with pytest.raises(TrainingError, match="does not say of itself"):
        compare(model, "onnx", path, {**written.metadata, "round": "8"})
    path.write_bytes(written.content[:-100])
    with pytest.raises(TrainingError, match="does not work when it is opened again: "):
        compare(model, "onnx", path, written.metadata)


def test_an_operation_that_onnx_does_not_have_is_one_line(tmp_path, monkeypatch, capfd):
    """Nothing of the graph that torch prints in such a case comes to the terminal."""
    body = (
        "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(torch.special.i1(x).flatten(1))\n"
        "def make(shape, classes): return Net(64, classes)\n"
    )
    (tmp_path / "no_onnx.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        TrainingError, match=r"^model.name no_onnx:make: torch cannot write it as ONNX .*special_i1.*\Z"
    ):
        FORMATS["onnx"].write(learnt(ModelShape("no_onnx:make", (1, 8, 8), 10)))
    assert capfd.readouterr() == ("", "")


def test_without_onnxruntime_the_reference_checks(tmp_path, monkeypatch):
    """The extra has no onnxruntime, which weighs 60 MB: then the file is checked slowly, and says with what."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for shape in (MODELS[0], MODELS[-1]):
        model = learnt(shape)
        path, written = save(model, "onnx", tmp_path)
        runtime = compare(model, "onnx", path, written.metadata).runtime
        assert runtime == f"onnx {onnx.__version__}'s reference, onnxruntime is not installed"


@pytest.mark.parametrize(("format_", "package"), [("onnx", "onnx"), ("safetensors", "safetensors")])
def test_a_package_that_is_not_installed_names_the_extra(monkeypatch, format_, package):
    """One line, and code 78, as for other extras."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"--format {format_} needs {package} .*; install the extra `export`"):
        require(format_)
    require("torchscript")


def test_the_module_of_formats_has_no_torch_in_it():
    """The command line reads the names of the formats at each start."""
    words = [
        sys.executable,
        "-c",
        f"import sys, {export.__name__}; print({{'torch', 'onnx', 'PIL'}} & set(sys.modules))",
    ]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "set()\n"
