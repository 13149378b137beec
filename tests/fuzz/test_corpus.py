"""The corpus is what its command makes, and nothing in it raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import CORPUS, MAX_LEN, NAMES
from tests.fuzz.corpus import FOLDER, FOUND, seeds
from tests.fuzz.targets import TARGETS

FILES = sorted(path for path in CORPUS.glob("*/*"))


def test_the_corpus_is_what_the_command_makes() -> None:
    """`python -m tests.fuzz --write-corpus` would change nothing; findings of before are beside the seeds."""
    committed = {path: path.read_bytes() for path in FILES if not path.name.startswith(FOUND)}
    made = {FOLDER / target / name: data for target, files in seeds().items() for name, data in files.items()}
    assert committed == made
    assert tuple(TARGETS) == tuple(MAX_LEN) == NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_nothing_in_the_corpus_raises(path: Path) -> None:
    """Every seed and every finding of before goes through its target."""
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_a_target_takes_anything(name: str) -> None:
    """Nothing, one byte, and any cut of a seed are inputs like others."""
    seed = next(path for path in FILES if path.parent.name == name).read_bytes()
    for data in (b"", b"\0", b"\xff", *(seed[:size] for size in range(0, len(seed), 7))):
        TARGETS[name](data)
