"""What the processes of one emulation must have in common before they begin; else they would drift apart unseen."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from agent import __version__
from agent.errors import ConfigError
from sim_harness.cohort.engine import Corpus, Engine
from sim_harness.distributed import World

_SAMPLES_APART: Final = 97
"""Of the samples one in so many is compared; of the labels all are."""


class Common(msgspec.Struct, frozen=True):
    """What all processes have alike."""

    release: str
    scenario: str
    data: str
    engine: str
    resume: bool


_WHAT_TO_DO: Final = {
    "release": "install the same one on all hosts",
    "scenario": "start all processes with the same scenario and flags",
    "data": "give all hosts the same files (data.path)",
    "engine": "name one that all hosts can have with --set engine.kind=... and engine.precision=...",
    "resume": "give --resume to all processes or to none",
}


def check_alike(world: World, scenario: str, corpus: Corpus, engine: Engine, *, resume: bool) -> None:
    """Raise ConfigError where a process differs from the first one; `scenario` is its text."""
    about = engine.describe()
    kind = f"{about['kind']} {about['precision']}"
    own = Common(__version__, _digest(scenario.encode()), data_digest(corpus), kind, resume)
    first, *others = world.gather(own, Common)
    for rank, other in enumerate(others, start=1):
        for name, what_to_do in _WHAT_TO_DO.items():
            here, there = getattr(first, name), getattr(other, name)
            if here != there:
                raise ConfigError(f"process {rank} has another {name} ({there}) than process 0 ({here}): {what_to_do}")


def data_digest(corpus: Corpus) -> str:
    """Return a digest of all labels, of some samples, and of how they are dealt out."""
    found = hashlib.sha256()
    for dataset in (corpus.data, corpus.test):
        found.update(dataset.y.astype("<i8").tobytes())
        found.update(dataset.x[::_SAMPLES_APART].astype("<f4").tobytes())
    for indices in (*corpus.train, *corpus.own_test):
        found.update(indices.astype("<i8").tobytes())
    return found.hexdigest()[:16]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
