"""Whether the measured watts fit the board's profile, at rest and in training; and what a training round costs."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass

from agent.checks.check import Bench, Finding, Power, failed, ok, skipped, warning
from agent.checks.sensor import power_of, said
from agent.checks.training import STEP_S, one_task
from agent.core.types import Quality
from agent.energy.meter import Meter, Reading
from agent.errors import EnergyError, TrainingError
from agent.learning.trainer import TrainOutcome, TrainTask
from agent.learning.worker import TrainerWorker

LOW, HIGH = 0.5, 1.25
"""Watts from LOW x idle to HIGH x max fit the profile: sources differ by 30 to 90 % for one kind of board."""
TENFOLD = (7.0, 14.0)
"""Measured by expected watts in this range are a shunt of 10 mOhm taken for one of 100, or the other way round."""
MORE = 0.02
"""By this share at least training draws more than rest does."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some seconds of training, as the meter saw them."""

    power: Power
    joules: float
    steps: int


@dataclass(frozen=True, slots=True)
class Known:
    """The watts that profile and configuration say; None: not known."""

    idle_w: float | None
    load_w: float | None
    max_w: float | None
    configured: frozenset[str] = frozenset()
    """Those that stand in the configuration; the others are the profile's."""

    @property
    def low_w(self) -> float | None:
        """Less than this no board of the kind draws."""
        return None if self.idle_w is None else LOW * self.idle_w

    @property
    def high_w(self) -> float | None:
        """More than this none draws."""
        most = self.max_w if self.max_w is not None else self.load_w
        return None if most is None else HIGH * most

    def __str__(self) -> str:
        watts = {"idle_w": self.idle_w, "load_w": self.load_w, "max_w": self.max_w}
        shown = {name: f"{name} {value:g}" for name, value in watts.items() if value is not None}
        own = [text for name, text in shown.items() if name in self.configured]
        others = [text for name, text in shown.items() if name not in self.configured]
        says = {"the configuration says": own, "the profile says": others}
        return ", ".join(f"{who} {', '.join(texts)}" for who, texts in says.items() if texts)


def check(bench: Bench) -> Finding:
    """Let the trainer work for some seconds under the meter, and compare; EnergyError, TrainingError."""
    if bench.idle is None or bench.meter is None or bench.worker is None or bench.first_params is None:
        return skipped("nothing was measured at rest, or there is no trainer")
    task = one_task(bench, bench.first_params, bench.config.learning.local_steps)
    reading, steps = _train(bench.meter, bench.worker, task, bench.host.load_s)
    if reading.error:
        raise EnergyError(reading.error)
    stretch = Stretch(power_of(reading), reading.energy_uj / 1e6, steps)
    line = f"at rest {bench.idle.watts:.2f} W; training {said(stretch.power)}; {_cost(stretch, task.local_steps)}"
    if reading.quality is Quality.ESTIMATED:
        return skipped(f"an estimate is made of the very watts that it would be compared with ({line})")
    known = known_watts(bench)
    if known.low_w is None and known.high_w is None:
        return skipped(f"no watts to compare with; to write into a profile of your own (docs/profiles.md): {line}")
    return _judge(bench, known, stretch, line)


def known_watts(bench: Bench) -> Known:
    """Return what the configuration says, and where it says nothing the profile."""
    wanted, board = bench.settings.wanted, bench.config.board
    load, energy = board.power.load_w if board else None, bench.config.energy
    configured = frozenset(name for name in ("idle_w", "max_w") if getattr(energy, name) is not None)
    return Known(wanted.idle_w, load.value if load else None, wanted.max_w, configured)


def _train(meter: Meter, worker: TrainerWorker, task: TrainTask, seconds: float) -> tuple[Reading, int]:
    """Train round after round, always the first one, until the time is up; return what it cost and the steps done."""
    steps, until = 0, time.monotonic() + seconds
    meter.open()
    try:
        while (left := until - time.monotonic()) > 0:
            outcome = _round(worker, task, left)
            if outcome.error:
                raise TrainingError(outcome.error)
            steps += outcome.steps
    finally:
        reading = meter.close()
    return reading, steps


def _round(worker: TrainerWorker, task: TrainTask, seconds: float) -> TrainOutcome:
    """Train one round, or as much of it as fits into the time."""
    answers: queue.SimpleQueue[TrainOutcome] = queue.SimpleQueue()
    worker.submit_train(task, answers.put)
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        worker.stop()
    try:
        return answers.get(timeout=STEP_S)
    except queue.Empty:
        worker.kill()
        raise TrainingError(f"the trainer did not stop within {STEP_S:.0f} s; use a smaller model") from None


def _cost(stretch: Stretch, local_steps: int) -> str:
    """Return the joules of the stretch, and what a training round costs by them."""
    if not stretch.steps:
        return f"{stretch.joules:.2f} J, and no whole step in that time"
    step_j = stretch.joules / stretch.steps
    return (
        f"{stretch.joules:.2f} J for {stretch.steps} steps, {step_j:.4g} J each: a round of {local_steps} steps costs "
        f"about {step_j * local_steps:.4g} J (energy.round_j)"
    )


def _judge(bench: Bench, known: Known, stretch: Stretch, line: str) -> Finding:
    """Compare both powers with the range that the profile leaves."""
    idle, training = bench.idle, stretch.power
    assert idle is not None  # noqa: S101  for the type checker
    for what, power in (("at rest", idle), ("training", training)):
        low, high = known.low_w, known.high_w
        if low is not None and power.watts < low:
            wrong = f"{power.watts:.2f} W {what} is less than {LOW:g} x idle_w"
        elif high is not None and power.watts > high:
            wrong = f"{power.watts:.2f} W {what} is more than {HIGH:g} x {'max_w' if known.max_w else 'load_w'}"
        else:
            continue
        return failed(f"{wrong} ({known}): {line}", _fix(bench, known, stretch))
    line = f"{line}; {known}"
    if bench.agent_runs:
        return ok(f"{line}; an agent is running, so both are its watts, too")
    if training.watts - idle.watts <= max(training.bound_w + idle.bound_w, MORE * idle.watts):
        return warning(
            f"training draws no more than rest: {line}",
            "check that energy.rails names what feeds the processor, and that the sensor is not stuck",
        )
    return ok(line)


def _fix(bench: Bench, known: Known, stretch: Stretch) -> str:
    """Name the likeliest cause by the ratio of measured to expected watts."""
    ratios = [
        power.watts / expected
        for power, expected in ((bench.idle, known.idle_w), (stretch.power, known.load_w or known.max_w))
        if power is not None and expected
    ]
    own = "or measure on site and write a profile of your own (docs/profiles.md, Calibrate on site)"
    if any(TENFOLD[0] <= ratio <= TENFOLD[1] for ratio in ratios):
        return (
            f"about ten times too much{_shunts(bench)}: the INA drivers take a shunt for 10 mOhm that most INA219 "
            f"boards have with 100: write its micro-ohms to shunt_resistor (100000; see `sensor` of the profile); {own}"
        )
    if any(ratio and TENFOLD[0] <= 1 / ratio <= TENFOLD[1] for ratio in ratios):
        return (
            f"about a tenth of what it should be{_shunts(bench)}: the INA driver takes the shunt for ten times as "
            f"large as it is: correct shunt_resistor; {own}"
        )
    return f"a wrong rail (energy.rails), profile (node.profile) or energy.correction; {own}"


def _shunts(bench: Bench) -> str:
    """Return which shunts the driver reckons with, where the sensor has any."""
    shunts = getattr(getattr(getattr(bench.meter, "device", None), "reader", None), "shunt_ohms", ())
    known = [f"{ohms * 1000:g}" for ohms in shunts if ohms]
    return f" (the driver reckons with {', '.join(known)} mOhm)" if known else ""
