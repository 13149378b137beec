"""The look at the data before a run: it takes what the trainer takes, and refuses what needs no sample to be wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agent.core.types import ModelShape
from agent.errors import AgentError, DataError
from agent.learning.child import make_trainer
from agent.learning.frames import WorkerConfig
from agent.learning.probe import LABEL_BYTES, PROBES, probe
from agent.learning.sources import SOURCES
from tests.learning.test_sources import write_cifar10, write_idx

ROOT = Path(__file__).parents[2]
IMAGES = np.random.default_rng(1).integers(0, 256, (6, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def worker(source: str, path: Path | str = "", **more: Any) -> WorkerConfig:
    """Return the configuration of a node with this data and a model for 3 classes of 8x8 pixels."""
    shape = ModelShape("small-cnn", more.pop("input_shape", (1, 8, 8)), more.pop("classes", 3))
    return WorkerConfig(model=shape, seed=1, node="a", source=source, path=str(path), **more)


def pictures(root: Path) -> Path:
    """Make two images in each of three class folders; return the folder above."""
    for name in ("ant", "bee", "cat"):
        (root / name).mkdir(parents=True)
        for number in "12":
            Image.new("L", (9, 7)).save(root / name / f"{number}.png")
    return root


def sound(source: str, folder: Path) -> WorkerConfig:
    """Return a configuration whose data is as it should be."""
    if source == "npz":
        np.savez(folder / "data.npz", x=IMAGES, y=LABELS, user=np.array(list("aabbcc")))
        return worker(source, folder / "data.npz")
    if source == "idx":
        write_idx(folder, "train", IMAGES, LABELS, ".gz")
        return worker(source, folder)
    if source == "fashion-mnist":
        write_idx(folder, "train", IMAGES, LABELS)
        return worker(source, folder, classes=10)
    if source == "cifar10":
        return worker(source, write_cifar10(folder), input_shape=(3, 32, 32), classes=10)
    return worker("digits", classes=10) if source == "digits" else worker(source, pictures(folder))


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_what_the_trainer_takes_passes(source: str, tmp_path: Path) -> None:
    """Every source has its look, and sound data passes it as it passes the trainer."""
    assert PROBES.keys() == SOURCES.keys()
    config = sound(source, tmp_path)
    probe(config)
    make_trainer(config)


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_a_model_of_another_shape_or_of_other_classes_is_seen_at_once(source: str, tmp_path: Path) -> None:
    """Too few classes in the model are said with the words of the trainer; so is another size, but for resized images.

    Of idx only the number of labels is looked at.
    """
    config = sound(source, tmp_path)
    wrong = [{"classes": 2}] if source != "idx" else []
    wrong += [{"input_shape": (1, 9, 9)}] if source != "folder" else [{"input_shape": (2, 8, 8)}]
    for change in wrong:
        given = {"classes": config.model.classes, **change}
        words = {}
        for look in (probe, make_trainer):
            with pytest.raises(AgentError) as caught:
                look(worker(source, config.path, **given))
            words[look] = str(caught.value).rpartition(" but ")[2]
        assert words[probe] == words[make_trainer]


def test_the_test_set_is_looked_at_too(tmp_path: Path) -> None:
    """A test set that is not there would keep the node from training, not only from testing."""
    with pytest.raises(DataError, match="nowhere"):
        probe(worker("digits", classes=10, test_source="npz", test_path=str(tmp_path / "nowhere.npz")))


def test_labels_too_many_to_read_are_left_to_the_trainer(tmp_path: Path) -> None:
    """Of a large file only the headers are read; what its labels say, the trainer finds out."""
    count = LABEL_BYTES // 8 + 1
    np.savez(tmp_path / "data.npz", x=np.zeros((count, 8, 8), np.uint8), y=np.full(count, 9))
    config = worker("npz", tmp_path / "data.npz")
    probe(config)
    with pytest.raises(DataError, match="labels go from 9 to 9"):
        make_trainer(config)


MEASURE = """
import sys, tracemalloc
from agent.core.types import ModelShape
from agent.learning.frames import WorkerConfig
from agent.learning.probe import probe
tracemalloc.start()
probe(WorkerConfig(model=ModelShape("small-cnn", (1, 100, 100), 3), seed=1, node="a", source="npz", path=sys.argv[1]))
print(tracemalloc.get_traced_memory()[1], *sorted({"torch", "PIL"} & set(sys.modules)))
"""


def test_no_sample_is_read(tmp_path: Path) -> None:
    """50 MB of samples cost less than 1 MB of memory at any time, and neither torch nor Pillow is loaded."""
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros((5000, 100, 100), np.uint8), y=np.zeros(5000, np.int64))
    words = [sys.executable, "-c", MEASURE, str(tmp_path / "data.npz")]
    peak, *loaded = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert int(peak) < 1_000_000
    assert loaded == []
