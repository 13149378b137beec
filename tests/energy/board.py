"""A simulated board on a virtual clock: what it really draws, its counters and sensors that die, and its trainer.

Energies are exact integers (microwatts x nanoseconds), so that what the board says it used is the truth to hold a
ledger against. Nothing here knows of ledgers.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from agent.core.types import Params
from agent.energy.counter import Clocks
from agent.energy.source import Scope
from agent.errors import EnergyError
from agent.learning.trainer import Evaluation, TrainOutcome, TrainTask

S = 1_000_000_000
RANGES_UJ = (65_532_610_987, 262_143_328_851)
"""Where RAPL's counters begin anew."""
RESOLUTION_UJ = 61
SENSOR_STEP_UW = 25_000
DRIFT = 0.3
NOISE = 0.03
MOST_NOISE = 0.1
THROTTLED = 0.03
"""Chance of a local step that throttling begins with it."""


class PowerCutError(Exception):
    """The process has lost all but its disk."""


@dataclass(frozen=True, slots=True)
class Physics:
    """What one board and its workload are like."""

    idle_uw: int
    train_uw: int
    """While training, at the beginning; cooler boards draw less."""
    step_ns: int
    local_steps: int
    load_ns: int
    """What the first training of a child takes to load torch and data."""
    latency_ns: int
    """Of a message between agent and child."""
    drifts: bool = True
    noisy: bool = True
    throttles: bool = True

    @property
    def round_uj(self) -> int:
        """What a whole round costs at the beginning."""
        return self.train_uw * self.step_ns * self.local_steps // S

    @property
    def max_uw(self) -> int:
        """The most that the board ever draws."""
        return int(self.train_uw * (1 + DRIFT) * (1 + MOST_NOISE)) + 1


class Board:
    """Time, power and whatever is to happen; a crash drops what the dead process had begun."""

    def __init__(self, physics: Physics, seed: int) -> None:
        self.physics, self.random = physics, random.Random(seed)  # noqa: S311  no secret
        self.now_ns, self.power_uw, self._energy = 1_000 * S, physics.idle_uw, 0
        self.boot, self.booted_ns, self.counter_from_uj = 1, 0, 0
        self._events: list[tuple[int, int, bool, Callable[[], None]]] = []
        self._numbers = 0
        self.throttled_steps = 0
        self.share_done: Callable[[], float] = lambda: 0.0

    @property
    def energy_uj(self) -> int:
        """All that was ever drawn."""
        return self._energy // S

    def monotonic_ns(self) -> int:
        """Return the time since the last boot."""
        return self.now_ns - self.booted_ns

    def monotonic_s(self) -> float:
        """Return the same in seconds."""
        return self.monotonic_ns() / S

    def clocks(self) -> Clocks:
        """Return the clocks to inject; the board never sleeps."""
        return Clocks(self.monotonic_ns, self.monotonic_ns)

    def read_text(self, encoding: str) -> str:  # noqa: ARG002  stands in for the file of the boot's id
        """Return the boot's id."""
        return f"boot-{self.boot}\n"

    def reboot(self) -> None:
        """Begin a new boot: clock and counter start anew."""
        self.boot, self.booted_ns = self.boot + 1, self.now_ns - self.random.randrange(5 * S, 60 * S)
        self.counter_from_uj = self.energy_uj

    def after(self, wait_ns: int, happens: Callable[[], None], *, physical: bool = False) -> None:
        """Let something happen later; only what is physical outlives the process."""
        self._numbers += 1
        heapq.heappush(self._events, (self.now_ns + wait_ns, self._numbers, physical, happens))

    def crash(self) -> None:
        """Drop what the process had begun: its child dies with it."""
        self._events = [event for event in self._events if event[2]]
        heapq.heapify(self._events)
        self.power_uw = self.physics.idle_uw

    def wait(self, until_ns: int, enough: Callable[[], object] = lambda: False) -> None:
        """Let time pass until then, or until it is enough."""
        while self._events and self._events[0][0] <= until_ns and not enough():
            at_ns, _, _, happens = heapq.heappop(self._events)
            self._pass_to(at_ns)
            happens()
        if not enough():
            self._pass_to(until_ns)

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self.wait(self.now_ns + round(seconds * S))

    def _pass_to(self, at_ns: int) -> None:
        if at_ns > self.now_ns:
            self._energy += self.power_uw * (at_ns - self.now_ns)
            self.now_ns = at_ns

    def next_step(self) -> tuple[int, int]:
        """Return the nanoseconds and the microwatts of the next local step."""
        physics, chance = self.physics, self.random
        length_ns, power_uw = physics.step_ns, float(physics.train_uw)
        if physics.drifts:
            power_uw *= 1 + DRIFT * min(1.0, self.share_done())
        if physics.noisy:
            power_uw *= 1 + max(-MOST_NOISE, min(MOST_NOISE, chance.gauss(0.0, NOISE)))
        if physics.throttles and not self.throttled_steps and chance.random() < THROTTLED:
            self.throttled_steps = chance.randrange(2, 12)
        if self.throttled_steps:
            self.throttled_steps -= 1
            length_ns, power_uw = 2 * length_ns, power_uw * chance.uniform(1.2, 2.0) / 2
        return length_ns, int(power_uw)


class Sensor:
    """What may be wrong with a reading: "" nothing, `raises`, `frozen`, `negative`, `beyond`, `wild`."""

    scope, rails = Scope.BOARD, ("board",)

    def __init__(self, board: Board) -> None:
        self.board, self.fault, self.since_ns = board, "", 0
        self._stuck = 0

    def break_(self, fault: str) -> None:
        """Go wrong from now on; "": be well again."""
        self._stuck, self.fault, self.since_ns = self.truth(), fault, self.board.now_ns

    def truth(self) -> int:
        """Return what a sensor that is well shows."""
        raise NotImplementedError

    def _shown(self, wild: int) -> int:
        if not self.fault:
            return self.truth()
        if self.fault == "raises":
            raise EnergyError("the sensor is gone")
        return {"frozen": self._stuck, "negative": -1, "beyond": 1 << 60, "wild": wild}[self.fault]


class Counter(Sensor):
    """A CounterReader that wraps, in steps of its resolution."""

    resolution_uj = RESOLUTION_UJ
    faults = ("raises", "frozen", "negative", "beyond", "wild")

    def __init__(self, board: Board, range_uj: int, first_uj: int) -> None:
        super().__init__(board)
        self.ranges_uj, self._first_uj, self.wrapped = (range_uj,), first_uj, False

    def truth(self) -> int:
        """Return what was drawn since boot, from some first value on; another boot begins with 0."""
        first_uj = self._first_uj if self.board.boot == 1 else 0
        used_uj = self.board.energy_uj - self.board.counter_from_uj
        turns, shown_uj = divmod(used_uj // RESOLUTION_UJ * RESOLUTION_UJ + first_uj, self.ranges_uj[0])
        self.wrapped = self.wrapped or turns > 0
        return shown_uj

    def read(self) -> tuple[int, ...]:
        """Return the counter."""
        return (self._shown(self.board.random.randrange(self.ranges_uj[0])),)


class Power(Sensor):
    """A PowerReader with a coarse step."""

    hz, idle_hz = 10.0, 0.0
    faults = ("raises", "negative")

    def resolution_uw(self) -> int:
        """Return the step."""
        return SENSOR_STEP_UW

    def truth(self) -> int:
        """Return the nearest step to what is drawn now."""
        return (self.board.power_uw + SENSOR_STEP_UW // 2) // SENSOR_STEP_UW * SENSOR_STEP_UW

    def read(self) -> tuple[int, ...]:
        """Return the power."""
        return (self._shown(0),)


class BoardTrainer:
    """An AsyncTrainer whose child obeys a stop after the local step under way, once it has heard of it."""

    def __init__(self, board: Board, ended: Callable[[], None]) -> None:
        """Call `ended` at the instant in which a training really ends."""
        self.board, self._ended = board, ended
        self._warm = self._training = self._stop_heard = False
        self._number, self._steps, self._steps_ns = 0, 0, 0
        self.stop_asked_ns: int | None = None

    def submit_train(
        self, task: TrainTask, done: Callable[[TrainOutcome], None], progress: Callable[[int], None] | None = None
    ) -> None:
        """Begin to draw power; the first training of a child loads torch and data first."""
        assert not self._training, "two trainings at a time"
        self._task, self._done, self._progress = task, done, progress
        self._training, self._stop_heard, self.stop_asked_ns = True, False, None
        self._number, self._steps, self._steps_ns = self._number + 1, 0, 0
        self.board.power_uw = self.board.physics.train_uw
        load_ns = 0 if self._warm else self.board.physics.load_ns
        self.board.after(self.board.physics.latency_ns + load_ns, self._guarded(self._loaded))

    def stop(self) -> None:
        """Send word to end before the next local step."""
        self.stop_asked_ns = self.board.now_ns if self.stop_asked_ns is None else self.stop_asked_ns
        self.board.after(self.board.physics.latency_ns, self._guarded(self._hear_stop))

    def kill(self) -> None:
        """End the child."""
        self.stop_asked_ns = self.board.now_ns if self.stop_asked_ns is None else self.stop_asked_ns
        self.board.after(self.board.physics.latency_ns, self._guarded(self._die))

    def submit_evaluate(self, params: Params, samples: int, done: Callable[[Evaluation], None]) -> None:
        """Never asked for here."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held."""

    def _guarded(self, happens: Callable[[], None]) -> Callable[[], None]:
        """Let it happen to the training of now, and to no later one."""
        number = self._number
        return lambda: happens() if self._training and number == self._number else None

    def _hear_stop(self) -> None:
        self._stop_heard = True

    def _loaded(self) -> None:
        self._warm = True
        self._go_on()

    def _go_on(self) -> None:
        if self._stop_heard or self._steps == self._task.local_steps:
            loss = 1.0 if self._steps else None
            self._end(TrainOutcome(self._task.params, loss, self._steps, self._steps_ns / S))
            return
        length_ns, self.board.power_uw = self.board.next_step()
        self._steps_ns += length_ns
        self.board.after(length_ns, self._guarded(self._step_done))

    def _step_done(self) -> None:
        self._steps += 1
        steps, progress = self._steps, self._progress
        if progress is not None:
            self.board.after(self.board.physics.latency_ns, lambda: progress(steps))
        self._go_on()

    def _die(self) -> None:
        self._warm = False
        self._end(TrainOutcome(self._task.params, None, 0, 0.0, "the trainer was killed"))

    def _end(self, outcome: TrainOutcome) -> None:
        self._training, self.board.power_uw = False, self.board.physics.idle_uw
        self._ended()
        done = self._done
        self.board.after(self.board.physics.latency_ns, lambda: done(outcome))
