"""Real agents on a board whose counters move: what they measure and learn, and what a dead sensor does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.audit import Audit, Terms, audit
from agent.config import (
    AgentConfig,
    JournalSection,
    LearningSection,
    MqttSection,
    NodeSection,
    PolicySection,
    RunSection,
    load_config,
)
from agent.core.types import NodeId, Quality
from agent.energy_config import BudgetSection, EnergySection
from agent.status import read_status
from sim_harness.fleet import NodeFiles
from sim_harness.mosquitto import free_port
from tests.device_rig import device_config, write_config
from tests.energy import trees
from tests.live_rig import LiveAgent

ME = NodeId("a")
STEP_UJ = 50_000


@dataclass
class Board:
    """A tree of counters that a thread moves, as hardware would."""

    sys: Path

    def __post_init__(self) -> None:
        trees.rapl(self.sys, trees.LAYOUTS["desktop"])
        self._mover, self._over = trees.Mover(self.sys), threading.Event()
        self._thread = threading.Thread(target=self._move)
        self._thread.start()

    def _move(self) -> None:
        while not self._over.wait(0.01):
            self._mover.move(STEP_UJ, "intel-rapl:0")

    def die(self) -> None:
        """Take the sensor away."""
        self.close()
        for path in self.sys.rglob("energy_uj"):
            if not path.is_symlink():
                path.rename(path.with_name("gone"))

    def close(self) -> None:
        """Stop the counters."""
        self._over.set()
        self._thread.join()


@dataclass
class Rig:
    """One agent alone, on a board of its own."""

    folder: Path
    board: Board

    def __post_init__(self) -> None:
        self.files = NodeFiles(ME, self.folder / "a")
        self.files.state.mkdir(parents=True)
        self.agent = LiveAgent(self.files)

    def configure(self, joules: float, rounds: int = 9, **sections: Any) -> AgentConfig:
        """Write its configuration."""
        energy = EnergySection(source="rapl", sysfs_root=str(self.board.sys), budget=BudgetSection(joules=joules))
        given: dict[str, Any] = {
            "node": NodeSection(
                id=ME, fleet="fleet", state_dir=str(self.files.state), runtime_dir=str(self.files.folder / "run")
            ),
            "run": RunSection(id="toy", rounds=rounds, roster=(ME,), start_timeout_s=60, round_deadline_s=60),
            "policy": PolicySection(name="skiptrain-replanned", train_rounds=2, sync_rounds=1),
            "learning": LearningSection(local_steps=20, batch_size=32, lr=0.05),
            "energy": energy,
            "mqtt": MqttSection(host="127.0.0.1", port=free_port()),
            "journal": JournalSection(model_every_rounds=1),
            **sections,
        }
        config = device_config(self.folder, "a", ("a",), **given)
        write_config(config, self.files.config)
        return config

    def audit(self) -> Audit:
        """Audit its journal."""
        config = load_config(self.files.config)
        return audit(self.agent.records(), Terms(config.descriptor(), ME), self.agent.state())


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Give an agent on a board that counts."""
    board = Board(tmp_path / "sys")
    rig = Rig(tmp_path, board)
    yield rig
    rig.agent.close()
    board.close()


def test_an_agent_measures_learns_and_keeps_its_budget(rig: Rig) -> None:
    """Every trained round is measured, with coverage and bound; costs are learnt; the audit explains all of it."""
    rig.configure(joules=1000)
    rig.agent.start()
    assert rig.agent.end() == 0
    records, state = rig.agent.records(), rig.agent.state()
    trained = [record for record in records if record.decision.train]
    assert state is not None
    assert (len(records), len(trained)) == (9, 6)
    for record in trained:
        assert record.window is not None
        assert (record.energy_quality, record.window.source, record.window.coverage) == (Quality.MEASURED, "rapl", 1.0)
        assert record.energy_uj % STEP_UJ in {0, 1}
        assert record.energy_uj > 0
    assert all(record.share_uj is not None for record in records)
    assert state.costs.seen == 6
    assert state.ledger.charged_uj == sum(record.energy_uj for record in records) <= 1_000_000_000
    found = rig.audit()
    assert (found.findings, found.taken_again, found.outside_uj) == ([], 9, 0)
    status = read_status(rig.files.folder / "run")
    assert (status.energy_source, status.energy, status.ended) == ("rapl", "", "all rounds are done")
    assert status.expected_j == pytest.approx(rig.agent.state().costs.cost().expected_uj / 1e6)  # type: ignore[union-attr]


def test_a_sensor_that_dies_ends_training_and_nothing_else(rig: Rig) -> None:
    """The node goes on to the end of its run, says why it does not train, and charges what it had reserved at most."""
    rig.configure(joules=1000, rounds=12)
    rig.agent.start()
    rig.agent.round(2)
    rig.board.die()
    assert rig.agent.end() == 0
    records, state = rig.agent.records(), rig.agent.state()
    assert len(records) == 12
    assert state is not None
    later = [record for record in records[5:] if record.decision.train]
    assert later
    assert all(record.energy_uj == 0 for record in later)
    assert all("not trained: rapl: " in record.error and "energy_uj" in record.error for record in later)
    assert any("this node shares and averages, but does not train" in line for line in rig.agent.lines)
    assert rig.audit().findings == []
    assert "energy_uj" in read_status(rig.files.folder / "run").energy


def test_a_counter_that_went_on_counting_settles_a_crash(rig: Rig) -> None:
    """After kill -9 in mid-training what the counter says is charged at the restart, not the whole reservation."""
    run = RunSection(id="toy", rounds=9, roster=(ME,), start_timeout_s=60, round_deadline_s=2)
    rig.configure(joules=100_000, run=run, learning=LearningSection(local_steps=200_000, batch_size=32, lr=0.05))
    rig.agent.start()
    state = rig.agent.freeze_when(lambda state: state.ledger.reservation is not None)
    reserved = state.ledger.reservation
    assert reserved is not None
    assert reserved.upper_uj == 10_000_000_000
    assert reserved.mark
    rig.agent.kill()
    rig.agent.start()
    rig.agent.wait_for(r"was interrupted: the counter says \d+\.\d+ J since its training began")
    rig.agent.round(1)
    rig.agent.end(signal.SIGTERM)
    (first, *_) = rig.agent.records()
    assert first.error == "interrupted while training: what was reserved stays charged"
    assert 0 < first.energy_uj < 1_000_000_000
    assert rig.audit().findings == []


def test_an_agent_without_its_sensor_does_not_start(rig: Rig) -> None:
    """Code 72, and one line that says where it looked."""
    rig.board.die()
    rig.configure(joules=1)
    rig.agent.start()
    assert rig.agent.end() == 72
    assert "energy_uj" in rig.agent.lines[-1]


def test_a_counter_that_stands_still_is_no_sensor(rig: Rig) -> None:
    """It would say that training costs nothing."""
    rig.board.close()
    rig.configure(joules=1)
    rig.agent.start()
    assert rig.agent.end() == 72
    assert "does not move" in rig.agent.lines[-1]


def test_a_relay_needs_neither_sensor_nor_data_nor_torch(rig: Rig) -> None:
    """It takes part in every round, trains in none, and has no budget to spend."""
    config = rig.configure(joules=1, node=_relay(rig))
    assert config.is_relay
    rig.agent.start("data.source=npz", f"data.path={rig.folder / 'none.npz'}")
    assert rig.agent.end() == 0
    assert {record.decision.reason for record in rig.agent.records()} == {"relay", "synchronisation round"}
    assert any("none (this is a relay)" in line for line in rig.agent.lines)


def _relay(rig: Rig) -> NodeSection:
    folder = rig.files.folder
    return NodeSection(
        id=ME,
        fleet="fleet",
        state_dir=str(rig.files.state),
        runtime_dir=str(folder / "run"),
        profile="raspberry-pi-zero-2-w",
    )
