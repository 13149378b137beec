"""What every registered source keeps: microjoules that only grow, no wrap below zero, errors that say what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.energy.device import CounterDevice, SampledDevice, between, open_device
from agent.energy.meter import MeasuredMeter
from agent.energy.source import AbsentError, Place
from agent.energy.sources import SOURCES
from agent.errors import EnergyError
from tests.energy.clock import Clock
from tests.energy.contract_boards import BOARDS, Board

STEP_S = 0.2

boards = pytest.mark.parametrize("board", BOARDS, ids=lambda board: f"{board.source} at {board.watts:g} W")


class Rig:
    """A board's device on a clock that the test moves."""

    def __init__(self, board: Board, root: Path) -> None:
        self.board, self.clock, self.place = board, Clock(), board.make(root)
        reader = find(board, self.place)
        board.adopt(reader, self.clock)
        self.device: CounterDevice | SampledDevice = open_device(reader, clocks=self.clock.clocks(), thread=False)

    def run(self, seconds: float) -> None:
        """Let the board go on at its load; a power is looked at as its thread would."""
        self.board.run(self.place, seconds)
        self.clock.pass_s(seconds)
        if isinstance(self.device, SampledDevice):
            self.device.sampler.step()


def find(board: Board, place: Place):
    """Find the board's source."""
    return SOURCES[board.source].find(place, board.wanted)


def says_what_to_do(board: Board, error: BaseException) -> bool:
    """Say whether an error is one line that names the thing, and what to do about it."""
    return bool(re.search(rf"(?s)\A(?!.*\n).*{board.named}.*[;,] .+\Z", str(error)))


def test_every_source_has_a_board() -> None:
    """A source without one is not known to keep the contract."""
    assert {board.source for board in BOARDS} == set(SOURCES)


@boards
def test_energy_only_grows(board: Board, tmp_path: Path) -> None:
    """On each rail, at each look."""
    rig = Rig(board, tmp_path)
    rig.device.window(True)
    seen = [rig.device.get_energy()]
    for _ in range(20):
        rig.run(STEP_S)
        seen.append(rig.device.get_energy())
    for rail in zip(*seen, strict=True):
        assert sorted(rail) == list(rail)
    assert sum(seen[-1]) > sum(seen[0]) == 0


@boards
def test_beginning_anew_is_never_negative(board: Board, tmp_path: Path) -> None:
    """A counter with a range goes round and nothing is lost; one without was reset, and its new value is known."""
    rig = Rig(board, tmp_path)
    ranges = getattr(rig.device.reader, "ranges_uj", ())
    if board.turn_back is None:
        kinds = {other.turn_back is not None for other in BOARDS if other.source == board.source}
        assert True in kinds or not any(ranges)
        return
    start = rig.device.state()
    expected_uj = board.turn_back(rig.place)
    rig.clock.pass_s(1.0)
    end = rig.device.state()
    assert between(start, end).energy_uj == expected_uj
    assert end.resets == (0 if any(ranges) else len(rig.device.reader.rails))


@boards
def test_absent(board: Board, tmp_path: Path) -> None:
    """What is not there says so, and nothing else raises that."""
    with pytest.raises(board.absent):
        find(board, board.empty(tmp_path))


@boards
@pytest.mark.parametrize("how", ["hide", "garble"])
def test_there_and_not_to_be_used(board: Board, tmp_path: Path, how: str) -> None:
    """Not absent: who looks for the best source must not pass over one that is broken."""
    place = board.make(tmp_path)
    getattr(board, how)(place)
    with pytest.raises(EnergyError) as raised:
        find(board, place)
    assert not isinstance(raised.value, AbsentError)
    assert says_what_to_do(board, raised.value), raised.value


@boards
@pytest.mark.parametrize("how", ["hide", "garble", "remove"])
def test_breaking_in_mid_window(board: Board, tmp_path: Path, how: str) -> None:
    """A counter tells at once; of a power the last one goes on for 2 s, or 5 looks, and is not counted as observed."""
    rig = Rig(board, tmp_path)
    rig.device.window(True)
    rig.run(STEP_S)
    start = rig.device.state()
    getattr(board, how)(rig.place)
    if isinstance(rig.device, SampledDevice):
        rig.clock.pass_s(1.0)
        held = between(start, rig.device.state())
        assert held.energy_uj == pytest.approx(board.watts * 1e6, abs=20)
        assert held.coverage == 0.0
        rig.clock.pass_s(9.0)
    with pytest.raises(EnergyError) as raised:
        rig.device.state()
    assert says_what_to_do(board, raised.value), raised.value


@boards
def test_joules_are_joules(board: Board, tmp_path: Path) -> None:
    """A window of 10 s at a known load, as the agent would be charged for it: neither microjoules nor millijoules."""
    rig = Rig(board, tmp_path)
    quality = SOURCES[board.source].quality
    meter = MeasuredMeter(board.source, rig.device, quality, clock=lambda: rig.clock.now_ns / 1e9)
    meter.open()
    for _ in range(50):
        rig.run(STEP_S)
        assert meter.spent_uj() >= 0
    reading = meter.close()
    assert reading.error == ""
    assert reading.energy_uj / 1e6 == pytest.approx(board.watts * 10.0, rel=1e-3)
    assert (reading.quality, round(reading.seconds, 6), reading.coverage) == (quality, 10.0, 1.0)
    assert reading.bound_uj < 0.05 * reading.energy_uj
