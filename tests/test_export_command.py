"""`skiptrain-agent export` as a person meets it: real journals, real processes, and the snippets of docs/export.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from agent import __version__
from agent.config import AgentConfig, DataSection, ModelSection, RunSection
from agent.core.types import Params
from agent.errors import AgentError, ConfigError, DataError, JournalError, TrainingError
from agent.export_command import export
from agent.journal import Generations, Journal, read_model
from agent.learning.data import BYTES
from agent.learning.export import FORMATS
from agent.learning.factory import build_module, describe
from agent.learning.model import load_params
from tests.device_rig import device_config, write_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def learnt_params(config: AgentConfig, seed: int = 5) -> Params:
    """Return parameters of the configured model that are no longer the first ones."""
    start = describe(config.descriptor().model, config.run.seed).initial_params
    return start + np.random.default_rng(seed).normal(0, 0.05, start.size).astype(np.float32)


def keep(config: AgentConfig, *rounds: int) -> None:
    """Write models after these rounds into the device's journal, as its agent does."""
    journal = Journal(Path(config.node.state_dir))
    for round_ in rounds:
        journal.save_model(config.descriptor().digest().hex(), round_, learnt_params(config, round_))
    journal.close()


def lines(config: AgentConfig, format_: str, out: Path | None = None, **options: object) -> list[str]:
    """Export in this process; return what is printed."""
    return list(export(config, format_, out, **options))  # type: ignore[arg-type]


def metadata(path: Path) -> dict[str, str]:
    """Return what an ONNX file says of itself."""
    return {item.key: item.value for item in onnx.load(path).metadata_props}


def command(folder: Path, *arguments: str | Path, code: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run `skiptrain-agent export` in `folder`, with `code` before it in the same process."""
    script = f"import sys; {code}; from agent.__main__ import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", script, "export", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("format_", list(FORMATS))
def test_the_newest_model_is_exported_while_the_agent_runs(tmp_path: Path, format_: str) -> None:
    """Another process holds the folder's lock; two lines on standard output, none on standard error."""
    config = device_config(tmp_path)
    keep(config, 3, 4)
    holder = "import sys; from pathlib import Path; from agent.journal import Journal; j = Journal(Path(sys.argv[1]));"
    words = [sys.executable, "-c", f"{holder} print('locked', flush=True); input()", config.node.state_dir]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(JournalError, match="in use"):
            Journal(Path(config.node.state_dir))
        result = command(tmp_path, "--format", format_, "--config", write_config(config, tmp_path / "agent.yaml"))
        process.communicate("\n")
    assert (result.returncode, result.stderr) == (0, "")
    name = f"fleet-toy-r4.{FORMATS[format_].suffix}"
    size = (tmp_path / name).stat().st_size
    first, second = result.stdout.splitlines()
    assert first == f"{name}: {format_}, run toy after round 4, 6186 parameters, {size} bytes"
    assert re.fullmatch(
        r"checked with \w+ [\w.+]+: for 8 random inputs the scores are those of this device's own model, "
        r"to \d\.\de[+-]\d\d \(allowed: 0\.0001\)",
        second,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "agent.yaml", name]


def test_the_file_says_where_it_comes_from(tmp_path: Path) -> None:
    """Every key of the table in docs/export.md, and no other, over the three formats."""
    config, path = device_config(tmp_path), tmp_path / "x.onnx"
    keep(config, 4)
    lines(config, "onnx", path)
    about = metadata(path)
    assert (
        about.items()
        >= {
            "agent_version": __version__,
            "fleet": "fleet",
            "run": "toy",
            "run_digest": config.descriptor().digest().hex(),
            "node": "a",
            "round": "4",
            "model": "small-cnn",
            "input_shape": "[1, 8, 8]",
            "class_names": json.dumps(list("0123456789")),
        }.items()
    )
    assert json.loads(about["normalisation"])["scale"] == 16
    lines(config, "safetensors", tmp_path / "x.safetensors")
    header = (tmp_path / "x.safetensors").read_bytes()
    more = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Metadata")[2].partition("\n## ")[0], re.MULTILINE)
    assert sorted(listed) == sorted(about.keys() | more.keys())


def test_normalisation_and_names_come_from_the_data(tmp_path: Path) -> None:
    """Bytes of a folder, its names; floats of an .npz as they are; nothing is read of the samples themselves."""
    for name in ("oak", "ash"):
        (tmp_path / "trees" / name).mkdir(parents=True)
    np.savez(tmp_path / "floats.npz", x=np.ones((2, 1, 8, 8), np.float32), y=np.arange(2))
    model, out = ModelSection(input_shape=(1, 8, 8), classes=2), tmp_path / "x.onnx"
    folder = device_config(tmp_path, model=model, data=DataSection(source="folder", path=str(tmp_path / "trees")))
    keep(folder, 0)
    note, *rest = lines(folder, "onnx", out)
    assert note.startswith(f"note: classes are named after today's folders in {tmp_path / 'trees'}")
    assert len(rest) == 2
    assert (metadata(out)["class_names"], json.loads(metadata(out)["normalisation"])["std"]) == ('["ash", "oak"]', 0.5)
    floats = device_config(tmp_path, model=model, data=DataSection(source="npz", path=str(tmp_path / "floats.npz")))
    assert lines(floats, "onnx", out, force=True)[0].startswith("note: nothing names the classes")
    assert metadata(out)["class_names"] == '["0", "1"]'
    assert json.loads(metadata(out)["normalisation"])["scale"] == 1
    assert len(lines(floats, "onnx", out, force=True, class_names=("ä", "b"))) == 2
    assert json.loads(metadata(out)["class_names"]) == ["ä", "b"]


def test_names_that_do_not_fit_and_data_that_is_gone_are_errors(tmp_path: Path) -> None:
    """A wrong name, or a wrong normalisation, is worse than no file; names of one's own need no folder."""
    gone = DataSection(source="folder", path=str(tmp_path / "gone"))
    config = device_config(tmp_path, data=gone)
    keep(config, 0)
    with pytest.raises(DataError, match=r"gone cannot be read \(No such file or directory\); correct data.path"):
        lines(config, "onnx", tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match="2 names for the 10 classes of the model"):
        lines(config, "onnx", tmp_path / "x.onnx", class_names=("a", "b"))
    assert len(lines(config, "onnx", tmp_path / "x.onnx", class_names=tuple("abcdefghij"))) == 2
    npz = device_config(tmp_path, data=DataSection(source="npz", path=str(tmp_path / "gone.npz")))
    with pytest.raises(DataError, match=r"gone.npz cannot be read"):
        lines(npz, "onnx", tmp_path / "y.onnx", class_names=tuple("abcdefghij"))


def test_without_a_model_of_the_run_there_is_no_file(tmp_path: Path) -> None:
    """None at all, one of another run, and the weights that the run began with: nothing was learnt."""
    config, out = device_config(tmp_path), tmp_path / "x.onnx"
    with pytest.raises(AgentError, match=r"no model of run toy yet: the first is written after round 0"):
        lines(config, "onnx", out)
    assert not Path(config.node.state_dir).exists()
    keep(config, 5)
    other = device_config(tmp_path, run=RunSection(id="next", rounds=9, roster=("a",)))
    with pytest.raises(AgentError, match=r"no model of run next as it is configured: the newest is of another one"):
        lines(other, "onnx", out)
    journal = Journal(Path(config.node.state_dir))
    journal.save_model(config.descriptor().digest().hex(), 6, describe(config.descriptor().model, 1).initial_params)
    journal.close()
    with pytest.raises(AgentError, match=r"what is there are the first weights, nothing is learnt"):
        lines(config, "onnx", out)
    assert not out.exists()


def test_a_factory_that_has_become_another_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is in the run's digest, its code is not: the number of parameters tells."""
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=True))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = device_config(tmp_path, model=ModelSection(name="my_net:make", input_shape=(1, 8, 8), classes=10))
    keep(config, 2)
    assert "run toy after round 2, 650 parameters" in lines(config, "torchscript", tmp_path / "x.pt")[0]
    monkeypatch.setattr(
        "my_net.make", lambda *_: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, False))
    )
    with pytest.raises(TrainingError, match=r"has 650 parameters, model.name my_net:make makes 640"):
        lines(config, "torchscript", tmp_path / "y.pt")


def test_a_damaged_newest_model_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """The reader is told; where nothing whole is left, there is no file."""
    config = device_config(tmp_path)
    keep(config, 3, 4)
    state = Path(config.node.state_dir)
    (state / "model.0").write_bytes((state / "model.0").read_bytes()[:-9])
    text = lines(config, "safetensors", tmp_path / "x.safetensors")
    assert text[0] == f"note: the newest model of {state} is damaged: this is the one before"
    assert "after round 3" in text[1]
    (state / "model.1").write_bytes(b"")
    with pytest.raises(JournalError, match="nothing whole is left"):
        lines(config, "safetensors", tmp_path / "y.safetensors")


def test_a_model_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A journal of another user's is no empty one."""
    config = device_config(tmp_path)
    keep(config, 3)
    (Path(config.node.state_dir) / "model.0").symlink_to("model.0")
    with pytest.raises(
        JournalError, match=r"model.0: cannot be read: Too many .*; check node.state_dir and its rights"
    ):
        read_model(Path(config.node.state_dir))


def test_reading_while_generations_are_replaced_always_finds_one(tmp_path: Path) -> None:
    """An agent that saves as fast as it can: each look finds a whole model, never an older one than before."""
    config = device_config(tmp_path)
    keep(config, 0)
    run, done = config.descriptor().digest().hex(), threading.Event()
    journal = Journal(Path(config.node.state_dir))

    def save() -> None:
        round_ = 1
        while not done.is_set():
            journal.save_model(run, round_, np.full(round_ % 90 * 700 + 1, round_, np.float32))
            round_ += 1

    writer = threading.Thread(target=save)
    writer.start()
    try:
        seen = []
        while len(set(seen)) < 50:
            found = read_model(journal.folder)
            assert found is not None
            assert not found.damaged
            assert not found.round or (found.params == found.round).all()
            seen.append(found.round)
    finally:
        done.set()
        writer.join()
        journal.close()
    assert seen == sorted(seen)


def test_a_generation_replaced_under_the_reader_s_eyes_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks damaged and has changed meanwhile is no damage."""
    config = device_config(tmp_path)
    keep(config, 3, 4)
    state, read = Path(config.node.state_dir), Generations.read
    whole = {path: path.read_bytes() for path in (state / "model.0", state / "model.1")}
    for path, body in whole.items():
        path.write_bytes(body[:-9])

    def read_late(self: Generations) -> object:
        found: object = None
        try:
            found = read(self)
        finally:
            for path, body in whole.items():
                path.with_suffix(".new").write_bytes(body)
                path.with_suffix(".new").replace(path)
        return found

    monkeypatch.setattr(Generations, "read", read_late)
    found = read_model(state)
    assert found is not None
    assert (found.round, found.damaged) == (4, False)


def test_what_is_there_stays_unless_force_is_used(tmp_path: Path) -> None:
    """Neither a file nor a folder is overwritten by mistake, and what fails leaves nothing behind."""
    config, out = device_config(tmp_path), tmp_path / "out" / "x.pt"
    keep(config, 4)
    with pytest.raises(AgentError, match=r"--out .*x.pt: cannot be written: No such file or directory"):
        lines(config, "torchscript", out)
    out.parent.mkdir()
    out.write_text("precious")
    with pytest.raises(ConfigError, match=r"is there already; name another file, or replace it with --force"):
        lines(config, "torchscript", out)
    assert out.read_text() == "precious"
    with pytest.raises(ConfigError, match="this is a folder; name a file"):
        lines(config, "torchscript", out.parent, force=True)
    with pytest.raises(AgentError, match="cannot be written: File name too long"):
        lines(config, "torchscript", tmp_path / ("x" * 300))
    assert [path.name for path in out.parent.iterdir()] == ["x.pt"]
    lines(config, "torchscript", out, force=True)
    assert [path.name for path in out.parent.iterdir()] == ["x.pt"]
    assert out.stat().st_size > 6186 * 4


def test_mistakes_are_one_line_and_their_code(tmp_path: Path) -> None:
    """A format that there is not, packages that are not installed, no model, a disk that takes nothing."""
    config = device_config(tmp_path)
    path = write_config(config, tmp_path / "agent.yaml")
    unknown = command(tmp_path, "--config", path, "--format", "pickle")
    assert unknown.returncode == 2
    assert "invalid choice: 'pickle'" in unknown.stderr
    for package in ("onnx", "safetensors"):
        result = command(tmp_path, "--config", path, "--format", package, code=f"sys.modules[{package!r}] = None")
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (78, "", 1)
        assert "install the extra `export`" in result.stderr
    empty = command(tmp_path, "--config", path, "--format", "onnx")
    assert (empty.returncode, empty.stdout, empty.stderr.count("\n")) == (1, "", 1)
    keep(config, 0)
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999))"
    full = command(tmp_path, "--config", path, "--format", "onnx", code=limit)
    assert (full.returncode, full.stdout) == (1, "")
    assert full.stderr == "skiptrain-agent: --out fleet-toy-r0.onnx: cannot be written: File too large\n"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "agent.yaml"]


def test_notes_go_to_standard_error_and_class_names_come_from_the_command(tmp_path: Path) -> None:
    """A program that reads the two lines is not led astray; no onnxruntime is needed."""
    np.savez(tmp_path / "floats.npz", x=np.ones((2, 1, 8, 8), np.float32), y=np.arange(2))
    data = DataSection(source="npz", path=str(tmp_path / "floats.npz"))
    config = device_config(tmp_path, data=data, model=ModelSection(input_shape=(1, 8, 8), classes=2))
    keep(config, 0)
    path, code = write_config(config, tmp_path / "agent.yaml"), "sys.modules['onnxruntime'] = None"
    result = command(tmp_path, "--config", path, "--format", "onnx", code=code)
    assert (result.returncode, result.stderr.count("\n"), result.stdout.count("\n")) == (0, 1, 2)
    assert result.stderr.startswith("note: nothing names the classes")
    assert f"checked with onnx {onnx.__version__}'s reference, onnxruntime is not installed: " in result.stdout
    named = command(tmp_path, "--config", path, "--format", "onnx", "--class-names", "left, right", "--out", "b.onnx")
    assert (named.returncode, named.stderr) == (0, "")
    assert metadata(tmp_path / "b.onnx")["class_names"] == '["left", "right"]'


def test_the_snippets_of_the_page_run_and_agree(tmp_path: Path) -> None:
    """Copied as they stand, without this project, on a photograph: the class and probability of the device's model."""
    for name in ("ash", "elm", "fir", "oak", "yew"):
        (tmp_path / "leaves" / name).mkdir(parents=True)
    data = DataSection(source="folder", path=str(tmp_path / "leaves"))
    config = device_config(tmp_path, data=data, model=ModelSection(input_shape=(3, 32, 32), classes=5))
    keep(config, 4)
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    small = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    shape = config.descriptor().model
    module = build_module(shape, config.run.seed)
    load_params(module, learnt_params(config, 4))
    with torch.no_grad():
        probabilities = module.eval()(torch.from_numpy(BYTES.apply(small[np.newaxis]))).softmax(1)[0]
    snippets = re.findall(r"^## (\w+)\n[^#]*?```python\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in snippets] == ["onnx", "torchscript", "safetensors"]
    for name, snippet in snippets:
        lines(config, name, tmp_path / f"leaves.{FORMATS[name].suffix}")
        words = [sys.executable, "-c", "import sys; sys.modules['agent'] = None\n" + snippet]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert (result.returncode, result.stderr) == (0, "")
        best, probability = result.stdout.split()
        assert best == ("ash", "elm", "fir", "oak", "yew")[int(probabilities.argmax())]
        assert float(probability) == pytest.approx(float(probabilities.max()), abs=1e-5)
