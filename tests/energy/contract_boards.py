"""For each registered source: a board that has it, a load that is known, and each way in which it can break."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.energy import estimate
from agent.energy.source import AbsentError, Place, Reader, Wanted
from agent.errors import EnergyError
from tests.energy import board_trees, trees
from tests.energy.clock import Clock
from tests.energy.test_nvml import Driver, NVMLError


@dataclass(frozen=True)
class Board:
    """One board of a source; what is left out is as for sources that show a constant power."""

    source: str
    watts: float
    """What it draws while `run` goes on."""
    make: Callable[[Path], Place]
    hide: Callable[[Place], object]
    """Nobody may read it."""
    garble: Callable[[Place], object]
    remove: Callable[[Place], object]
    named: str
    """What each error must name."""
    wanted: Wanted = field(default_factory=Wanted)
    run: Callable[[Place, float], object] = lambda _place, _seconds: None
    """Go on for so many seconds."""
    turn_back: Callable[[Place], int] | None = None
    """Let its counters begin anew within a second; return what they count in it, in microjoules."""
    adopt: Callable[[Reader, Clock], object] = lambda _reader, _clock: None
    """Put the reader on the test's clock."""
    absent: type[EnergyError] = AbsentError

    def empty(self, root: Path) -> Place:
        """Return a place where it is not."""
        return Place(sys=root / "none", proc=root / "none", vcgencmd=str(root / "none"), nvml=Driver([]))


def _replace(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _all(pattern: str, act: Callable[[Path], object]) -> Callable[[Place], None]:
    """Return what does something to all files of a pattern below /sys, each once."""

    def do(place: Place) -> None:
        found = {path.resolve() for path in place.sys.rglob(pattern)}
        assert found, pattern
        for path in found:
            act(path)

    return do


def _write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def _tree(build: Callable[[Path], object]) -> Callable[[Path], Place]:
    def make(root: Path) -> Place:
        build(root / "sys")
        return board_trees.place(root)

    return make


def _files(pattern: str) -> Mapping[str, Callable[[Place], None]]:
    """Return the ways to break files of numbers."""
    return {
        "hide": _all(pattern, _replace),
        "garble": _all(pattern, _write("#!\n")),
        "remove": lambda place: shutil.rmtree(place.sys),
    }


def _pi(root: Path) -> Place:
    board_trees.vcgencmd(root, board_trees.pmic_lines(board_trees.PMIC_A))
    return board_trees.place(root)


def _says(text: str, exit_code: int) -> Callable[[Place], Path]:
    return lambda place: board_trees.vcgencmd(Path(place.vcgencmd).parent, text, exit_code)


def _count(place: Place, seconds: float) -> None:
    trees.Mover(place.sys).move(round(15e6 * seconds))


def _wrap(place: Place) -> int:
    mover = trees.Mover(place.sys)
    mover.move(7_000_000)
    assert mover.turns["intel-rapl:0"] == 1
    return 7_000_000


def _accumulate(place: Place, seconds: float) -> None:
    _all("energy1_input", lambda path: path.write_text(f"{int(path.read_text()) + round(2.792e6 * seconds)}\n"))(place)


def _restart(place: Place) -> int:
    _all("energy1_input", _write("2000000\n"))(place)
    return 2_000_000


def _driver(place: Place) -> Driver:
    assert isinstance(place.nvml, Driver)
    return place.nvml


def _gpus(place: Place, seconds: float) -> None:
    _driver(place).counters[:] = [int(counter) + round(100e3 * seconds) for counter in _numbers(place)]


def _numbers(place: Place) -> list[int]:
    return [counter for counter in _driver(place).counters if isinstance(counter, int)]


def _reload(place: Place) -> int:
    _driver(place).counters[:] = [2_000, 3_000]
    return 5_000_000


def _fails(number: int, text: str) -> Callable[[Place], None]:
    def fail(place: Place) -> None:
        driver = _driver(place)
        driver.trouble = NVMLError(number, text)
        driver.counters[:] = [driver.trouble, driver.trouble]

    return fail


def _computer(root: Path) -> Place:
    board_trees.stat(root / "proc", user=500, idle=500)
    return board_trees.place(root)


def _half_busy(place: Place, seconds: float) -> None:
    words = (place.proc / "stat").read_text().split()
    board_trees.stat(place.proc, user=int(words[1]) + round(50 * seconds), idle=int(words[4]) + round(50 * seconds))


def _on_clock(reader: Reader, clock: Clock) -> None:
    assert isinstance(reader, estimate.Estimate)
    reader._clock, reader._at_ns = lambda: clock.now_ns, clock.now_ns


def _on_stat(act: Callable[[Path], object]) -> Callable[[Place], object]:
    return lambda place: act(place.proc / "stat")


BOARDS: tuple[Board, ...] = (
    Board("ina", 2.792, _tree(board_trees.ina_hat), **_files("power1_input"), named="hwmon5"),
    Board("ina", 30.2944, _tree(board_trees.agx_orin), **_files("curr1_input"), named="hwmon4"),
    Board(
        "ina",
        2.792,
        _tree(board_trees.ina228),
        **_files("energy1_input"),
        named="energy1_input",
        run=_accumulate,
        turn_back=_restart,
    ),
    Board("jetson-iio", 2.545, _tree(board_trees.jetson_nano), **_files("in_power0_input"), named="iio:device0"),
    Board(
        "rpi-pmic",
        10.799894,
        _pi,
        hide=_says("VCHI initialization failed\n", 255),
        garble=_says("#!\n", 0),
        remove=lambda place: Path(place.vcgencmd).unlink(),
        named="vcgencmd",
    ),
    Board("rapl", 15.0, _tree(trees.rapl), **_files("energy_uj"), named="energy_uj", run=_count, turn_back=_wrap),
    Board(
        "rapl",
        30.0,
        _tree(lambda sys: trees.rapl(sys, trees.LAYOUTS["two packages"])),
        **_files("energy_uj"),
        named="energy_uj",
        run=_count,
    ),
    Board("power-supply", 4.21, _tree(board_trees.bat0), **_files("power_now"), named="BAT0"),
    Board("power-supply", 0.549648, _tree(board_trees.bq27441), **_files("current_now"), named="bq27441-0"),
    Board(
        "nvml",
        200.0,
        lambda root: Place(sys=root, proc=root, nvml=Driver([10**12, 10**12])),
        hide=_fails(4, "Insufficient Permissions"),
        garble=_fails(999, "Unknown Error"),
        remove=_fails(15, "GPU is lost"),
        named="nvml",
        run=_gpus,
        turn_back=_reload,
    ),
    Board(
        "estimate",
        4.65,
        _computer,
        hide=_on_stat(_replace),
        garble=_on_stat(_write("#!\n")),
        remove=_on_stat(Path.unlink),
        named="stat",
        wanted=Wanted(idle_w=2.9, max_w=6.4),
        run=_half_busy,
        adopt=_on_clock,
        absent=EnergyError,  # it is never absent: it needs nothing but the kernel
    ),
)
"""A source may have several: one a kind of hardware that it reads in another way."""
