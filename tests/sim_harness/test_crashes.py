"""Real agents on a real broker through kill -9, a broker that dies, and a disk that is full."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from agent.core.types import Quality, RoundRecord, Snapshot
from agent.energy.trace import published_row
from sim_harness.mosquitto import MosquittoBroker
from tests.live_rig import LiveAgent, live_fleet

DEADLINE_S = 60.0
STEPS = "learning.local_steps=60"
"""Trainings that last long enough to be hit."""


def cost_uj(device: str) -> int:
    """Return what a training round of one of the demo's devices costs."""
    return published_row("cifar10", device).cost_uj


def charged_once(agent: LiveAgent, final: Snapshot, cost: int) -> list[RoundRecord]:
    """Check that a ledger holds exactly what the rounds cost, each training once; return the accounts."""
    records, ledger = agent.records(), final.ledger
    rounds = [record.round for record in records]
    assert rounds == sorted(set(rounds))
    charged = [record for record in records if record.energy_uj]
    assert {record.energy_uj for record in charged} <= {cost}
    assert ledger.charged_uj == cost * len(charged) == cost * ledger.windows
    assert ledger.limit_uj is not None
    assert ledger.charged_uj <= ledger.limit_uj
    assert ledger.reservation is None
    return records


def test_kill_9_in_mid_training_costs_one_reservation_and_nobody_else_a_round(tmp_path: Path) -> None:
    """One of 8 dies: the others go on within their deadlines; it comes back into their round, no joule lost."""
    (tmp_path / "broker").mkdir()
    rounds = 24
    settings = (f"rounds={rounds}", STEPS, f"timing.round_deadline_s={DEADLINE_S}", "policy.name=greedy")
    with (
        closing(MosquittoBroker(tmp_path / "broker")) as broker,
        live_fleet(tmp_path, (broker.host, broker.port), *settings) as agents,
    ):
        for agent in agents:
            agent.start()
        victim, *others = agents
        victim.round(1)
        frozen = victim.freeze_when(lambda state: state.round >= 3 and state.ledger.reservation is not None)
        victim.kill()
        assert victim.state() == frozen
        for agent in others:
            agent.round(frozen.round + 2)
        said = len(victim.lines)
        victim.start()
        assert [agent.end() for agent in agents] == [0] * 8
        victim.wait_for(rf"the journal is at round {frozen.round}: going on where the fleet is", said)
        states = [agent.state() for agent in agents]
        devices = itertools.cycle(["xiaomi-12-pro", "galaxy-s22-ultra", "oneplus-nord-2", "poco-x3"])
        accounts = []
        for agent, state, device in zip(agents, states, devices, strict=False):
            assert state is not None
            assert state.finished
            accounts.append(charged_once(agent, state, cost_uj(device)))
        own = {record.round: record for record in accounts[0]}
        killed = own[frozen.round]
        assert (killed.energy_uj, killed.energy_quality) == (cost_uj("xiaomi-12-pro"), Quality.ESTIMATED)
        assert killed.error == "interrupted while training: what was reserved stays charged"
        assert states[0] is not None
        assert states[0].ledger.forfeited_uj == cost_uj("xiaomi-12-pro")
        back = min(round_ for round_ in own if round_ > frozen.round)
        assert back > frozen.round + 1, "it goes on in the round of its neighbours, not where it was"
        assert own[back].decision.reason == "catching up"
        assert sorted(own) == [*range(frozen.round + 1), *range(back, rounds)]
        for records in accounts[1:]:
            assert [record.round for record in records] == list(range(rounds))
            assert max(record.train_s + record.collect_s for record in records) < DEADLINE_S
            mixed = {record.round for record in records if any(node == "n000" for node, _, _ in record.mixed)}
            assert not mixed & set(range(frozen.round, back))
        neighbours = [records for records in accounts[1:] if any(n == "n000" for n, _, _ in records[0].mixed)]
        assert len(neighbours) == 4
        for records in neighbours:
            assert any(node == "n000" for record in records[back:] for node, _, _ in record.mixed)


def test_a_broker_that_dies_and_comes_back_stops_nobody(tmp_path: Path) -> None:
    """All agents finish all their rounds, and mix again after it is back; what they spent is what they recorded."""
    (tmp_path / "broker").mkdir()
    rounds = 24
    settings = ("nodes=4", "topology.degree=2", f"rounds={rounds}", STEPS, f"timing.round_deadline_s={DEADLINE_S}")
    broker = MosquittoBroker(tmp_path / "broker")
    with live_fleet(tmp_path, (broker.host, broker.port), *settings) as agents:
        try:
            for agent in agents:
                agent.start()
            for agent in agents:
                agent.round(4)
            broker.kill()
            for agent in agents:
                agent.wait_for("not connected to the broker: .*; trying again")
            broker.close()
            broker = MosquittoBroker(tmp_path / "broker", broker.port)
            assert [agent.end() for agent in agents] == [0] * 4
        finally:
            broker.close()
        for agent, device in zip(
            agents, ["xiaomi-12-pro", "galaxy-s22-ultra", "oneplus-nord-2", "poco-x3"], strict=True
        ):
            state = agent.state()
            assert state is not None
            assert state.finished
            records = charged_once(agent, state, cost_uj(device))
            assert records[-1].round == rounds - 1
            assert records[-1].peers_received == 2
            assert [record.round for record in records][:5] == list(range(5))


def test_an_agent_on_a_full_disk_shares_on_and_trains_again_when_there_is_room(tmp_path: Path) -> None:
    """A real file system without a byte left: no training, models shared and mixed, then all as before, by itself."""
    (tmp_path / "broker").mkdir()
    mounted = tmp_path / "nodes" / "n000" / "state"
    mount = f'mkdir -p {mounted} && mount -t tmpfs -o size=32m none {mounted} && exec "$0" "$@"'
    settings = ("nodes=2", "rounds=100000", "policy.name=d-psgd", "topology.degree=1", STEPS)
    with (
        closing(MosquittoBroker(tmp_path / "broker")) as broker,
        live_fleet(tmp_path, (broker.host, broker.port), *settings) as agents,
    ):
        small = LiveAgent(agents[0].files, ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount))
        other = agents[1]
        agents[0] = small
        for agent in agents:
            agent.start()
        small.round(3)
        assert small.process is not None
        inside = Path(f"/proc/{small.process.pid}/root{mounted}")
        fill(inside / "fill")
        full = small.wait_for("state: the (state|model) cannot be written: No space left on device; .* does not train")
        refused = small.wait_for(r" train=1 .* energy_j=0\.000 .* error=\"not trained: .*No space left on device", full)
        last = small.wait_for(r"round=\d+ .* peers=1/1 .* error=\"not trained", refused)
        missing = int(small.lines[last - 1].partition("round=")[2].split()[0])
        other.round(missing)
        (inside / "fill").unlink()
        again = small.wait_for("state: takes writes again; [0-9]+ records .* lost", last)
        trained = small.wait_for(r" train=1 .* energy_j=[1-9]", again)
        assert "error" not in small.lines[trained - 1]
        with held(inside) as folder:
            assert small.end(signal.SIGTERM) == 0
            assert other.end(signal.SIGTERM) == 0
            names = os.listdir(folder)  # noqa: PTH208  there is no path to it any more
        assert "state.0" in names
        assert not [name for name in names if name.endswith(".tmp")]
        accounts = {record.round: record for record in other.records()}
        assert "n000" in {node for node, _, _ in accounts[missing].mixed}


@contextmanager
def held(folder: Path) -> Iterator[int]:
    """Keep a file system that goes with the process that mounted it: what a running agent writes is not yet whole."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


def fill(path: Path) -> None:
    """Write until the file system has no room left, not for a byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4_096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
