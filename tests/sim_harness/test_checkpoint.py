"""Checkpoints: stopped after any event, and gone on with to the same end; what is damaged or foreign runs nothing."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DataError
from sim_harness import checkpoint
from tests.sim_harness.test_emulator import faults
from tests.sim_harness.toy_fleet import ToyFleet, same_end, toy_scenario


def gone_on_with(fleet: ToyFleet, folder: Path, number: int) -> ToyFleet:
    """Return a fleet that knows nothing but the checkpoint of another one, and what that one's observer has seen."""
    fleet.arithmetic.settle()
    known = {"arithmetic": fleet.arithmetic, "initial": fleet.initial}
    state = (fleet.emulator.state, fleet.trainings.under_way(), fleet.seen, fleet.published)
    checkpoint.save(folder, number, state[:2], known)
    fleet.arithmetic.close()
    other = ToyFleet(fleet.scenario)
    found, (loaded, under_way) = checkpoint.load(folder, {"arithmetic": other.arithmetic, "initial": other.initial})
    assert found == number
    other.seen, other.published = fleet.seen, fleet.published
    other.trainings.resume(under_way)
    other.emulator = other.wired(loaded)
    return other


@settings(max_examples=25, deadline=None)
@given(drawn=faults(), stops=st.lists(st.integers(0, 400), min_size=1, max_size=4))
def test_a_run_goes_on_from_any_event(drawn: list[str], stops: list[int], tmp_path_factory: Any) -> None:
    """Stopped several times after any number of events: the same records, models, ledgers and traffic, to the bit."""
    folder, scenario = tmp_path_factory.mktemp("checkpoints"), toy_scenario(*drawn)
    fleet = ToyFleet(scenario)
    for number, events in enumerate(stops):
        left = iter(range(events))
        if fleet.emulator.run(lambda left=left: next(left, None) is not None):  # type: ignore[misc]
            break
        fleet = gone_on_with(fleet, folder, number)
    same_end(fleet.run(), ToyFleet(scenario).run())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return the folder of a checkpoint in mid-run."""
    fleet = ToyFleet(toy_scenario())
    left = iter(range(60))
    assert not fleet.emulator.run(lambda: next(left, None) is not None)
    fleet.arithmetic.settle()
    checkpoint.save(tmp_path / "checkpoint", 7, fleet.emulator.state, {"arithmetic": fleet.arithmetic})
    fleet.arithmetic.close()
    return tmp_path / "checkpoint"


KNOWN = {"arithmetic": object()}


def test_only_the_newest_one_stays(saved: Path) -> None:
    """And `current` names it."""
    checkpoint.save(saved, 8, {"round": 3}, {})
    assert sorted(path.name for path in saved.iterdir()) == ["8", "current"]
    assert checkpoint.load(saved, {}) == (8, {"round": 3})


def test_one_that_was_never_finished_does_not_count(saved: Path) -> None:
    """A power cut while a checkpoint is written: the one before is still there, and is what is read."""
    (saved / "8").mkdir()
    (saved / "8" / "state").write_bytes(b"half of")
    assert checkpoint.load(saved, KNOWN)[0] == 7
    checkpoint.save(saved, 8, "whole", {})
    assert checkpoint.load(saved, {}) == (8, "whole")


@pytest.mark.parametrize("name", ["current", "7/state", "7/models.npy"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-2],
        lambda whole: whole[: len(whole) // 2],
        lambda _: b"",
        lambda whole: whole + b"\0",
        lambda whole: whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 4]) + whole[len(whole) // 2 + 1 :],
    ],
    ids=["two bytes short", "half", "empty", "longer", "a bit flipped"],
)
def test_what_is_damaged_is_refused(saved: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    """Every byte counts, not only those that a reader stumbles over."""
    path = saved / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="cannot be read"):
        checkpoint.load(saved, KNOWN)


@pytest.mark.parametrize("name", ["current", "7/state", "7/models.npy"])
def test_what_is_not_there_is_refused(saved: Path, name: str) -> None:
    """With the folder's name and what to do."""
    (saved / name).unlink()
    with pytest.raises(DataError, match=r"checkpoint: the checkpoint cannot be read .*; run the scenario again"):
        checkpoint.load(saved, KNOWN)


def calling(module: str, name: str, *arguments: object) -> bytes:
    """Return a pickle that calls something, with texts as arguments, when it is read."""
    function = _text(module) + _text(name) + b"\x93"  # STACK_GLOBAL: what these two name
    return b"\x80\x04" + function + b"(" + b"".join(map(_text, arguments)) + b"tR."


def _text(value: object) -> bytes:
    """Return the opcode that puts a short text on the stack."""
    return b"\x8c" + bytes([len(str(value))]) + str(value).encode()


FOREIGN = [
    ("os", "system", "touch {}"),
    ("posix", "system", "touch {}"),
    ("subprocess", "check_output", "touch {}"),
    ("builtins", "eval", "open('{}', 'w')"),
    ("builtins", "exec", "open('{}', 'w')"),
    ("builtins", "open", "{}", "w"),
    ("builtins", "getattr", "{}", "__class__"),
    ("pathlib", "Path", "{}"),
    ("agent.core.wire", "hashlib.new", "md5"),
    ("agent.core.wire", "hashlib", "md5"),
    ("agent.core.types", "params_digest", "{}"),
    ("agent.core.types", "Roster.__init__.__globals__", "{}"),
    ("agent.core", "types", "{}"),
    ("agent.journal", "Journal", "{}"),
    ("agent.energy.recording", "read_recording", "{}"),
    ("agent.energy.recording", "Path", "{}"),
    ("agent.treasury", "Callable", "{}"),
    ("sim_harness.folders", "made", "{}"),
    ("sim_harness.__main__", "main", "{}"),
    ("sim_harness.checkpoint", "save", "{}"),
    ("sim_harness.emulated_evidence", "EmulatedEvidence", "{}"),
    ("sim_harness.emulated_evidence", "_open", "{}"),
    ("sim_harness.no_such_module", "thing", "{}"),
    ("numpy", "load", "{}"),
    ("__main__", "anything", "{}"),
]


@pytest.mark.parametrize("call", FOREIGN, ids=lambda call: f"{call[0]}.{call[1]}")
def test_a_foreign_pickle_runs_nothing(call: tuple[str, ...], saved: Path, tmp_path: Path) -> None:
    """Whoever forges the digests, too, gets nothing called that is no class of a state."""
    made, (module, name, *arguments) = tmp_path / "made", call
    state = calling(module, name, *(argument.format(made) for argument in arguments))
    forge(saved, state)
    with pytest.raises(DataError, match="is no part of an emulation"):
        checkpoint.load(saved, KNOWN)
    assert not made.exists()


def test_the_forged_pickles_would_run_elsewhere(tmp_path: Path) -> None:
    """What the test above refuses is a pickle that does what it says."""
    made = tmp_path / "made"
    pickle.loads(calling("os", "mkdir", made))  # noqa: S301  our own
    assert made.is_dir()


def forge(folder: Path, state: bytes) -> None:
    """Put other bytes in place of the state, with the digest that they need."""
    (folder / "7" / "state").write_bytes(state)
    digests = [checkpoint._sha256(folder / "7" / name) for name in ("state", "models.npy")]
    (folder / "current").write_text(" ".join(["7", *digests]), encoding="ascii")


def test_a_pickle_in_the_place_of_models_is_not_read(saved: Path) -> None:
    """Arrays of objects would be unpickled without any check."""
    path = saved / "7" / "models.npy"
    np.save(path, np.array([os.system], dtype=object), allow_pickle=True)
    forge(saved, (saved / "7" / "state").read_bytes())
    with pytest.raises(DataError, match="cannot be read"):
        checkpoint.load(saved, KNOWN)


def test_another_format_is_named(saved: Path) -> None:
    """A checkpoint of a release to come."""
    forge(saved, pickle.dumps((99, None)))
    with pytest.raises(DataError, match="a checkpoint of format 99, this release's is 3 of"):
        checkpoint.load(saved, KNOWN)
