"""The estimate: watts from idle to most by the processors' busy share, on a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.energy import estimate
from agent.energy.source import Place, Scope, Wanted
from agent.errors import EnergyError
from tests.energy import board_trees as trees

PI_4B = Wanted(idle_w=2.9, max_w=6.4)
S = 1_000_000_000


@dataclass
class Clock:
    """Nanoseconds that only the test moves."""

    now_ns: int = 5 * S

    def __call__(self) -> int:
        """Return the time."""
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    """Give a clock."""
    return Clock()


def begin(root: Path, clock: Clock) -> estimate.Estimate:
    """Begin an estimate of 2.9 to 6.4 W after 1000 ticks, half of them busy."""
    return estimate.Estimate(trees.stat(root / "proc", user=500, idle=500), 2_900_000, 6_400_000, clock)


@pytest.mark.parametrize(
    ("more", "watts"),
    [
        ({"idle": 200}, 2.9),
        ({"user": 200}, 6.4),
        ({"user": 50, "idle": 150}, 3.775),
        ({"user": 50, "idle": 50, "iowait": 100}, 3.775),
        ({"user": 50, "idle": 50, "steal": 100}, 3.775),
    ],
)
def test_the_busy_share(tmp_path: Path, clock: Clock, more: dict[str, int], watts: float) -> None:
    """Two seconds of it; waiting for a disk and stolen time are not busy."""
    reader = begin(tmp_path, clock)
    ticks = more | {name: 500 + more.get(name, 0) for name in ("user", "idle")}
    trees.stat(tmp_path / "proc", **ticks)
    clock.now_ns += 2 * S
    assert reader.read() == (round(2 * watts * 1e6),)


def test_it_adds_up(tmp_path: Path, clock: Clock) -> None:
    """A second of idling, one of work, and 3 ms in which no tick passed: the last share counts."""
    reader = begin(tmp_path, clock)
    spent = []
    for user, idle, more_ns in ((500, 600, S), (600, 600, S), (600, 600, 3_000_000)):
        trees.stat(tmp_path / "proc", user, idle)
        clock.now_ns += more_ns
        spent.append(reader.read()[0])
    assert spent == [2_900_000, 9_300_000, 9_319_200]
    assert (reader.rails, reader.ranges_uj, reader.scope) == (("estimate",), (0,), Scope.BOARD)
    assert reader.resolution_uj == 35_000


def test_before_the_first_tick_it_is_the_most(tmp_path: Path, clock: Clock) -> None:
    """Unknown is not idle."""
    reader = begin(tmp_path, clock)
    clock.now_ns += 1_000_000
    assert reader.read() == (6_400,)


def test_iowait_may_go_back(tmp_path: Path, clock: Clock) -> None:
    """The kernel says that it does; the last share counts then."""
    reader = begin(tmp_path, clock)
    trees.stat(tmp_path / "proc", 600, 550, iowait=50)
    clock.now_ns += S
    assert reader.read() == (4_650_000,)
    trees.stat(tmp_path / "proc", 610, 550)
    clock.now_ns += S
    assert reader.read() == (9_300_000,)


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [(Wanted(), "idle_w and max_w"), (Wanted(idle_w=2.9), "max_w"), (Wanted(max_w=6.4), "idle_w")],
)
def test_watts_that_are_not_known(tmp_path: Path, wanted: Wanted, missing: str) -> None:
    """They are not invented."""
    trees.stat(tmp_path / "proc", 500, 500)
    with pytest.raises(EnergyError, match=rf"estimate: not known: {missing}; set energy\.idle_w"):
        estimate.find(trees.place(tmp_path), wanted)


@pytest.mark.parametrize(
    ("idle_w", "max_w"), [(6.4, 2.9), (-1.0, 2.9), (0.0, 0.0), (1.0, float("inf")), (float("nan"), 1)]
)
def test_watts_that_are_no_range(tmp_path: Path, idle_w: float, max_w: float) -> None:
    """Nor are they taken as they come."""
    trees.stat(tmp_path / "proc", 500, 500)
    with pytest.raises(EnergyError, match="is no range"):
        estimate.find(trees.place(tmp_path), Wanted(idle_w=idle_w, max_w=max_w))


def test_it_has_no_rails(tmp_path: Path) -> None:
    """And says so."""
    trees.stat(tmp_path / "proc", 500, 500)
    with pytest.raises(EnergyError, match="it has no rails"):
        estimate.find(trees.place(tmp_path), Wanted(rails=("VDD_IN",), idle_w=2.9, max_w=6.4))


@pytest.mark.parametrize(
    "text", [None, "intr 5\n", "cpu  1 2 3\n", "cpu  1 2 x 4 5 6 7 8 9 10\n", "cpu  1 2 -3 4 5 6 7 8\n"]
)
def test_vanishing_and_garbage(tmp_path: Path, text: str | None) -> None:
    """Between two readings."""
    stat = trees.stat(tmp_path / "proc", 500, 500)
    reader = estimate.find(trees.place(tmp_path), PI_4B)
    stat.unlink()
    if text is not None:
        stat.write_text(text)
    with pytest.raises(EnergyError, match="stat: "):
        reader.read()


def test_the_real_one_goes_on() -> None:
    """On the machine of the test: the second reading is no less than the first."""
    reader = estimate.find(Place(), PI_4B)
    assert 0 <= reader.read()[0] <= reader.read()[0]
