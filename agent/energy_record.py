"""`skiptrain-agent energy record`: what one source says over time, and what the rounds of an agent beside it cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

import msgspec

from agent.core.costs import CostHistory
from agent.core.types import RoundRecord, Snapshot
from agent.energy.recording import Head, Recording, Window, Writer, read_recording
from agent.energy.settings import Correction
from agent.energy.sources import SOURCES
from agent.energy_command import Asked, Progress
from agent.errors import AgentError, ConfigError, EnergyError
from agent.journal import read_records, read_snapshot

if TYPE_CHECKING:
    from agent.energy.device import CounterDevice, SampledDevice

    AnyDevice: TypeAlias = CounterDevice | SampledDevice

HZ = 10.0
"""Samples a second; fewer where the source asks for fewer looks."""
_NAP_S = 0.1
"""How soon a recording that is told to stop notices it."""


def record(
    asked: Asked,
    seconds: float,
    out: Path,
    *,
    force: bool = False,
    progress: Progress = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Write what the selected source says for so many seconds; return what there is now, for a person.

    What is written stays, whatever ends it. ConfigError: there is such a file; EnergyError: the source cannot be read,
    or not to the end; JournalError: the agent's journal cannot be read.
    """
    from agent.energy.device import open_device

    _check_target(out, force=force)
    chosen, settings = asked.choose()
    device = open_device(chosen.reader, max_w=settings.wanted.max_w)
    try:
        device.check_moving()
        before = _Before.read(asked)
        head = Head(
            source=chosen.name,
            scope=chosen.reader.scope.value,
            rails=chosen.reader.rails,
            quality=SOURCES[chosen.name].quality.value,
            node=asked.config.node.id if asked.config else "",
        )
        with _open(out, force=force) as file:
            failure = _sample(
                device, settings.correction, Writer(file, head), _ticks(device, seconds, progress, stopped)
            )
    finally:
        device.close()
    rounds = before.since()
    if rounds:
        _rewrite(out, before, rounds)
    kept = _kept(out, read_recording(out), chosen.name)
    if failure:
        raise EnergyError(f"{chosen.name}: {failure}; kept {kept}")
    return kept


@dataclass(frozen=True, slots=True)
class _Before:
    """What the agent's journal held when the recording began; without a configuration there is none to look at."""

    folder: Path | None = None
    seen: frozenset[tuple[str, int]] = frozenset()
    snapshot: Snapshot | None = None

    @classmethod
    def read(cls, asked: Asked) -> _Before:
        """Read the records before the state: what falls between the two is in the state."""
        if asked.config is None:
            return cls()
        folder = Path(asked.config.node.state_dir)
        seen = frozenset((one.run, one.round) for one in read_records(folder))
        return cls(folder, seen, read_snapshot(folder))

    def since(self) -> list[RoundRecord]:
        """Return the rounds in which the agent has trained since, in order."""
        if self.folder is None:
            return []
        return [one for one in read_records(self.folder) if one.decision.train and not self._knows(one)]

    def _knows(self, one: RoundRecord) -> bool:
        """Say whether the training of that round had ended before the recording began: its cost is learnt already."""
        if (one.run, one.round) in self.seen:
            return True
        now = self.snapshot
        if now is None or now.run != one.run:
            return False
        trained = now.decision is not None and now.decision.train and now.ledger.reservation is None
        return one.round < now.round or (one.round == now.round and trained)

    def history(self, first: RoundRecord) -> CostHistory:
        """Return what the first round's decision knew of costs: nothing where the state speaks of another workload."""
        costs, account = self.snapshot.costs if self.snapshot else CostHistory(), first.account
        known = costs.cost()
        if account is None or known is None or account.seen != costs.seen:
            return CostHistory()
        same = (account.expected_uj, account.upper_uj) == (known.expected_uj, known.upper_uj)
        return costs if same else CostHistory()


def _ticks(device: AnyDevice, seconds: float, progress: Progress, stopped: Callable[[], bool]) -> Iterator[None]:
    """Yield at fixed distances from the start, and at the end; what was slept through is left out."""
    period_s = 1 / min(HZ, float(getattr(device.reader, "hz", HZ)))
    began_s, number = time.monotonic(), 0
    while not stopped() and time.monotonic() - began_s < seconds:
        number = max(number + 1, int((time.monotonic() - began_s) / period_s))
        due_s = began_s + min(number * period_s, seconds)
        while not stopped() and (left_s := due_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _NAP_S))
        yield
        progress(time.monotonic() - began_s)


def _sample(device: AnyDevice, correction: Correction, writer: Writer, ticks: Iterator[None]) -> str:
    """Write the corrected energy since the start at each tick; return why the source could not be read, or ""."""
    last_s, last_uj = 0.0, 0
    try:
        device.window(True)
        start = device.state()
        writer.sample(last_s, last_uj)
        for _ in ticks:
            now = device.state()
            passed_s = round(now.at_s - start.at_s, 6)
            if passed_s > last_s:
                last_s, raw_uj = passed_s, now.energy_uj - start.energy_uj
                last_uj = max(last_uj, correction.apply_uj(raw_uj, passed_s))
                writer.sample(last_s, last_uj)
    except EnergyError as error:
        return str(error)
    finally:
        with suppress(EnergyError):
            device.window(False)
    return "" if last_uj or not last_s else f"{', '.join(device.reader.rails)}: nothing was counted in {last_s:.3f} s"


def _rewrite(out: Path, before: _Before, rounds: Sequence[RoundRecord]) -> None:
    """Put the rounds behind the samples, and what was known of their cost into the head."""
    recording, account = read_recording(out), rounds[0].account
    head = msgspec.structs.replace(
        recording.head,
        expected_uj=account.expected_uj if account else None,
        upper_uj=account.upper_uj if account else None,
        history=before.history(rounds[0]),
    )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            writer = Writer(file, head)
            for sample in recording.samples:
                writer.sample(*sample)
            for one in rounds:
                writer.window(_window(one))
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        raise _unwritable(out, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _window(one: RoundRecord) -> Window:
    if one.window is None:
        return Window(one.energy_uj, None, 0.0, one.round, warm=False)
    window = one.window
    return Window(one.energy_uj, window.whole_uj, window.seconds, one.round, window.load_uj, window.warm)


def _kept(out: Path, recording: Recording, source: str) -> str:
    seconds, energy_uj = recording.samples[-1] if recording.samples else (0.0, 0)
    rounds = f", {len(recording.windows)} training rounds" if recording.windows else ""
    return f"{out}: {source}, {len(recording.samples)} samples in {seconds:.1f} s, {energy_uj / 1e6:.3f} J{rounds}"


def _check_target(out: Path, *, force: bool) -> None:
    """Raise ConfigError where the file must not be written: found out before the work, not behind it."""
    if out.is_dir():
        raise ConfigError(f"--out {out}: this is a folder; name a file")
    if os.path.lexists(out) and not force:
        raise ConfigError(f"--out {out}: is there already; name another file, or replace it with --force")


def _open(out: Path, *, force: bool) -> TextIO:
    try:
        return out.open("w" if force else "x", encoding="utf-8", newline="")
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> AgentError:
    return AgentError(f"--out {out}: cannot be written: {error.strerror}")
