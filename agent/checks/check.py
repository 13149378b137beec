"""What every check is to the doctor: a function from a bench to a finding; and the bench, which checks share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from agent.checks.clock_state import kernel_synchronised
from agent.config import AgentConfig
from agent.core.types import Params
from agent.energy.meter import Meter
from agent.energy.settings import EnergySettings
from agent.energy.source import Place
from agent.errors import AgentError, ContractViolation
from agent.learning.factory import is_factory
from agent.learning.model import model_spec, n_params, parameters
from agent.learning.worker import TrainerWorker
from agent.status import read_status

if TYPE_CHECKING:
    from agent.checks.survey import Survey

Status: TypeAlias = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: a line with the numbers seen, and what to do where something is wrong."""

    status: Status
    detail: str
    fix: str = ""


def ok(detail: str) -> Finding:
    """Return that all is well."""
    return Finding("ok", detail)


def warning(detail: str, fix: str) -> Finding:
    """Return that the agent will run, but not as well as it could, or not for long."""
    return Finding("warning", detail, fix)


def failed(detail: str, fix: str) -> Finding:
    """Return that the agent cannot do its work so."""
    return Finding("failed", detail, fix)


def skipped(why: str) -> Finding:
    """Return that there was nothing to look at, and why."""
    return Finding("skipped", why)


def blamed(error: AgentError, fix: str) -> Finding:
    """Return a failure in an error's own words: behind its first semicolon stands what to do; `fix` where nothing does.

    All errors of this project are written so: what is wrong, where; what to do.
    """
    what, _, own = str(error).partition("; ")
    return failed(what, own or fix)


@dataclass(frozen=True, slots=True)
class Host:
    """The machine as checks see it, beside what the configuration says of /sys and vcgencmd; a test gives its own."""

    proc: Path = Path("/proc")
    run: Path = Path("/run")
    synchronised: Callable[[], bool | None] = kernel_synchronised
    """Whether the kernel takes its clock for synchronised; None: it does not tell."""
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    idle_s: float = 1.0
    """How long the idle board is measured."""
    load_s: float = 5.0
    """How long the board is measured while it trains."""
    listen_s: float = 3.0
    """How long mDNS is listened to at least."""


@dataclass(frozen=True, slots=True)
class Power:
    """What a stretch of time cost on average."""

    watts: float
    bound_w: float
    """What it may be off by."""
    coverage: float
    seconds: float


@dataclass(slots=True)
class Bench:
    """What one run of the doctor knows so far, and what it has opened: checks leave here what later ones build on."""

    path: str
    overrides: tuple[str, ...]
    host: Host
    sysfs_root: str = ""
    loaded: AgentConfig | None = None
    """The configuration, once the first check has read it."""
    meter: Meter | None = None
    worker: TrainerWorker | None = None
    first_params: Params | None = None
    """The model's first weights, once the trainer's check has them."""
    idle: Power | None = None
    survey: Survey | None = None
    began: tuple[float, float] = field(default=(0.0, 0.0))
    """Wall clock and monotonic clock at the start."""

    @property
    def config(self) -> AgentConfig:
        """The configuration; only for checks that need the one which reads it."""
        if self.loaded is None:
            raise ContractViolation("a check that needs the configuration must say so in the registry")
        return self.loaded

    @property
    def settings(self) -> EnergySettings:
        """What the source of energy needs to know, on this host."""
        settings = self.config.energy_settings()
        return replace(settings, place=replace(settings.place, proc=self.host.proc))

    @property
    def place(self) -> Place:
        """Where sensors are; without a configuration where they usually are."""
        if self.loaded is not None:
            return self.settings.place
        return Place(sys=Path(self.sysfs_root or "/sys"), proc=self.host.proc)

    @property
    def agent_runs(self) -> bool:
        """Whether an agent with this configuration is running now."""
        try:
            return not read_status(Path(self.config.node.runtime_dir)).ended
        except AgentError:
            return False

    @property
    def model_bytes(self) -> int | None:
        """Size of the model's weights; None: a user's factory that was not built."""
        shape = self.config.descriptor().model
        if self.first_params is not None:
            return int(self.first_params.nbytes)
        return None if is_factory(shape.name) else 4 * n_params(parameters(model_spec(shape)))

    def close(self) -> None:
        """End what was opened."""
        if self.worker is not None:
            self.worker.close()
        if self.meter is not None:
            self.meter.end()


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the registry."""

    name: str
    exit_code: int
    """What the command ends with where this is the first check that failed."""
    run: Callable[[Bench], Finding]
    needs: tuple[str, ...] = ()
    """Checks without whose success there is nothing to look at."""
    fix: str = "read docs/doctor.md"
    """What to do where an error does not say so itself."""
