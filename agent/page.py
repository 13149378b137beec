"""What people and systemd get to see of a daemon: status page, systemd's line, and a round's line in the log."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.config import AgentConfig
from agent.core.budget import Cost, Ledger
from agent.core.round_machine import RoundMachine
from agent.core.types import Quality, RoundRecord
from agent.energy.meter import Meter
from agent.errors import ConfigError
from agent.reach import Reach
from agent.service import Notifier
from agent.status import PeerStatus, Status, write_status

_log = logging.getLogger(__name__)

EVERY_S = 1.0
"""How old the page may get."""


@dataclass(frozen=True, slots=True)
class Health:
    """What the page says of the disk and of the meter."""

    journal_bytes: int
    disk: str
    """Why the journal cannot be written, or ""."""
    source: str
    """Of energy."""
    energy: str
    """Why nothing can be trained for energy's sake, or ""."""


class Page:
    """One agent's page, rewritten once a second, and systemd's line with it."""

    def __init__(self, config: AgentConfig, notifier: Notifier) -> None:
        """Make the folder of the page; ConfigError where that cannot be."""
        self._config, self._notifier = config, notifier
        self._folder = _runtime_folder(config.node.runtime_dir)
        self._due = 0.0
        self._failed = False

    def keep_fresh(self, now: float, machine: RoundMachine, reach: Reach, health: Health) -> None:
        """Write it where it is due."""
        if now >= self._due:
            self._due = now + EVERY_S
            self.write(now, machine, reach, health)

    def write(self, now: float, machine: RoundMachine, reach: Reach, health: Health, *, ended: str = "") -> None:
        """Write it; a folder that does not take it is said once, and the run goes on."""
        status = describe(self._config, machine, reach, now, health, ended=ended)
        text = f"round {status.round}/{status.rounds} {status.phase}, {status.peers_online} peers, {status.decision}"
        self._notifier.status("; ".join(filter(None, [text, health.disk, health.energy])))
        try:
            write_status(self._folder, status)
        except OSError as error:
            if not self._failed:
                _log.warning("%s: the status page cannot be written: %s", self._folder, error.strerror)
            self._failed = True


def describe(
    config: AgentConfig, machine: RoundMachine, reach: Reach, now: float, health: Health, *, ended: str
) -> Status:
    """Return what an agent is doing now."""
    ledger, decision, cost = machine.ledger, machine.decision, machine.purse.cost
    neighbours, ready = machine.peers, machine.roster.digest().hex() if machine.roster else "-"
    return Status(
        node=config.node.id,
        fleet=config.node.fleet,
        run=config.run.id,
        pid=os.getpid(),
        phase=machine.phase.value,
        round=machine.round,
        rounds=config.run.rounds,
        decision=decision.reason if decision else "none yet",
        trained=machine.trained,
        connection=reach.connection,
        peers_online=len(machine.around.live),
        neighbours=len(neighbours),
        budget_j=None if ledger.limit_uj is None else ledger.limit_uj / 1e6,
        spent_j=ledger.charged_uj / 1e6,
        left_j=None if ledger.left_uj is None else ledger.left_uj / 1e6,
        energy_source=health.source,
        energy=health.energy,
        expected_j=None if cost is None else cost.expected_uj / 1e6,
        period=ledger.period,
        credited_j=ledger.credited_uj / 1e6,
        left_rounds=ledger.left_rounds,
        journal_bytes=health.journal_bytes,
        disk=health.disk,
        network=asdict(reach.stats()),
        refused=machine.refusals,
        ended=ended,
        peers=tuple(
            PeerStatus(view.node, view.online, view.node in neighbours, view.ready == ready, view.address, view.sources)
            for view in reach.peers(now)
        ),
    )


def budget_line(meter: Meter, ledger: Ledger, cost: Cost | None) -> str:
    """Return in one line where joules come from, what is left of them, and what a training round takes."""
    parts = [f"{meter.source} ({_kind(meter)})"]
    if ledger.left_uj is not None and ledger.limit_uj is not None:
        parts.append(f"{ledger.left_uj / 1e6:.1f} of {ledger.limit_uj / 1e6:.1f} J left")
    if ledger.left_rounds is not None:
        parts.append(f"{ledger.left_rounds} training rounds left")
    if ledger.left_uj is None and ledger.left_rounds is None:
        parts.append("no budget")
    if ledger.period:
        parts.append(f"period {ledger.period}")
    if meter.source != "none":
        takes = "the first training round tells what one takes"
        parts.append(takes if cost is None else f"a training round takes about {cost.expected_uj / 1e6:.3f} J")
    return ", ".join(parts)


def _kind(meter: Meter) -> str:
    """Return what its joules are worth."""
    if meter.source == "none":
        return "this is a relay"
    if not meter.measured:
        return "replayed, not measured"
    return "estimated, not measured" if meter.source == "estimate" else "measured"


def one_line(record: RoundRecord) -> str:
    """Return a round as one key=value line for the log."""
    loss = "-" if record.loss is None else f"{record.loss:.4f}"
    text = (
        f"round={record.round} kind={record.kind.value} train={int(record.decision.train)} "
        f'p={record.decision.probability:.3f} reason="{record.decision.reason}" '
        f"energy_j={record.energy_uj / 1e6:.3f}{_measured(record)} loss={loss} "
        f"peers={record.peers_received}/{record.peers_expected} rejected={record.rejected} "
        f"train_s={record.train_s:.2f} collect_s={record.collect_s:.2f}"
    )
    return f'{text} error="{record.error}"' if record.error else text


def _measured(record: RoundRecord) -> str:
    """Return what a meter says besides; nothing where energy is replayed."""
    share = "" if record.share_uj is None else f" share_j={record.share_uj / 1e6:.3f}"
    idle = "" if record.idle_uj is None else f" idle_j={record.idle_uj / 1e6:.3f}"
    window = record.window
    if window is None or record.energy_quality is Quality.REPLAYED:
        return share + idle
    return f" bound_j={window.bound_uj / 1e6:.3f} coverage={window.coverage:.3f}{share}{idle}"


def _runtime_folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"node.runtime_dir {path}: cannot be made: {error.strerror}") from None
    return folder
