"""The energy command, called as an operator would, and hands that let a board go on while it is read."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.__main__ import main
from agent.energy.device import CounterDevice
from tests.energy.trees import Mover

SECONDS = "0.3"
TICK_S = 0.002


@dataclass(frozen=True)
class Said:
    """What one call printed."""

    code: int
    out: str
    err: str

    @property
    def page(self) -> Any:
        """The JSON."""
        return json.loads(self.out)

    def row(self, source: str) -> Any:
        """Return what it says of one source."""
        return next(row for row in self.page["sources"] if row["source"] == source)


class Caller:
    """Calls the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, sys: Path, *words: str | Path, seconds: str = SECONDS, json_: bool = True) -> Said:
        """Measure below `sys`."""
        return self.main("energy", "--sysfs-root", sys, "--seconds", seconds, *["--json"][: int(json_)], *words)

    def main(self, *words: str | Path) -> Said:
        """Call `skiptrain-agent`."""
        code = main([str(word) for word in words])
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)


@contextmanager
def moving(act: Callable[[float], object]) -> Iterator[None]:
    """Let a thread call `act` with the seconds since its last call, again and again."""
    over = threading.Event()

    def run() -> None:
        last_s = time.monotonic()
        while not over.wait(TICK_S):
            now_s = time.monotonic()
            act(now_s - last_s)
            last_s = now_s

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def at_watts(sys: Path, watts: float, *ids: str) -> Callable[[float], object]:
    """Return what moves the zones of a tree, or some of them, as a load would."""
    mover = Mover(sys)
    return lambda seconds: mover.move(round(watts * 1e6 * seconds), *ids)


def when_the_window_opens(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return what is set as soon as a counter's window is open."""
    opened, window = threading.Event(), CounterDevice.window

    def watched(device: CounterDevice, open: bool) -> None:  # noqa: A002  as it is called there
        window(device, open)
        if open:
            opened.set()

    monkeypatch.setattr(CounterDevice, "window", watched)
    return opened


def right(row: Any, watts: float, tolerance: float = 1e-3) -> bool:
    """Say whether a row shows these watts, with all that belongs to them."""
    fits = abs(row["watts"] - watts) <= tolerance
    adds_up = row["joules"] == pytest.approx(row["watts"] * row["seconds"], rel=1e-3)
    whole = row["error"] is None and row["seconds"] >= float(SECONDS) and row["coverage"] == 1.0
    shares: Sequence[float] = list(row["rail_watts"].values())
    raw = row.get("raw_watts", row["watts"])
    return bool(fits and adds_up and whole and sum(shares) == pytest.approx(raw, abs=1e-4))
