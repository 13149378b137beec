"""A peer that lies changes nothing but counters: each lie against the same fleet in which that peer is silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.round_machine import RoundMachine
from agent.core.round_state import Phase
from agent.core.types import ModelUpdate, NodeId, Params, Roster, RoundRecord, TopologySpec, params_digest
from agent.core.wire import Format, encode
from tests.core.cluster import CHUNK_BYTES, COST, N_PARAMS, Cluster, Faults, Node, make_run, names, restart_fleet
from tests.core.machines import ME, OTHERS, start
from tests.core.wire_bytes import AT, patched

ROUNDS = 12
ROSTER = names(6)
*HONEST, LIAR = ROSTER
GRAPHS = {"complete": 5, "regular": 3, "rings": 2}
"""In the sparse ones the liar's presence says that it is offline: who is there and silent is awaited until the
deadline, and where deadlines set the pace, nodes that are not all neighbours can miss each other's models."""
LIMITS = {node: (3 + i) * COST.upper_uj for i, node in enumerate(ROSTER)}
MOMENTS_S = (0.0, 0.01, 0.3, 2.0, 7.0)
"""When the liar speaks besides once in each round: before the others have begun, and in the midst of training."""


@dataclass(frozen=True)
class Liar:
    """What the liar knows when it speaks: its cluster, and the round that the fastest honest node is in."""

    cluster: Cluster
    round: int

    def model(self, round_: int, value: float = 9.0) -> ModelUpdate:
        """Return the model that would be right in `round_`, with a value that could not be overlooked in an average."""
        params = np.full(N_PARAMS, value, np.float32)
        degree = len(self.cluster.graphs[0][LIAR])
        return ModelUpdate(LIAR, round_, 0, Roster(0, ROSTER).digest(), degree, 0, params, params_digest(params))

    def send(self, update: ModelUpdate, form: Format | None = None) -> list[bytes]:
        """Return an update as its chunks."""
        return encode(update, form or self.cluster.form, CHUNK_BYTES)

    def tell(self, **lie: object) -> list[bytes]:
        """Return the model of this round with some fields changed."""
        return self.send(replace(self.model(self.round), **lie))  # type: ignore[arg-type]  # any field

    def edited(self, field: str, value: bytes) -> list[bytes]:
        """Return the model of this round with some bytes of its headers changed, under a right checksum."""
        return [patched(chunk, AT[field], value) for chunk in self.tell()]

    def sized(self, n_params: int) -> list[bytes]:
        """Return a model of another size."""
        params: Params = np.ones(n_params, np.float32)
        update = replace(self.model(self.round), params=params, digest=params_digest(params))
        return self.send(update, replace(self.cluster.form, n_params=n_params))

    def ahead(self, rounds: int) -> list[bytes]:
        """Return the right model of a later round."""
        return self.send(self.model(self.round + rounds))

    def behind(self, rounds: int) -> list[bytes]:
        """Return the right model of an earlier round, if there is one."""
        return self.send(self.model(self.round - rounds)) if self.round >= rounds else []


def _nan(liar: Liar) -> list[bytes]:
    params = np.full(N_PARAMS, np.nan, np.float32)
    return liar.tell(params=params, digest=params_digest(params))


def _every_round(liar: Liar) -> list[bytes]:
    """Share all rounds that are beyond everybody's window, at once."""
    return [chunk for round_ in range(liar.round + 4, ROUNDS) for chunk in liar.send(liar.model(round_))]


LIES: dict[str, tuple[str, Callable[[Liar], list[bytes]]]] = {
    "a round after the last": ("no such round", lambda liar: liar.ahead(1_000)),
    "the largest round": ("no such round", lambda liar: liar.tell(round=2**32 - 1)),
    "rounds ahead": ("too early", lambda liar: liar.ahead(5) if liar.round + 5 < ROUNDS else []),
    "every round at once": ("too early", _every_round),
    "rounds behind": ("late", lambda liar: liar.behind(6)),
    "a smaller degree": ("wrong degree", lambda liar: liar.tell(degree=0)),
    "a larger degree": ("wrong degree", lambda liar: liar.tell(degree=4_000_000_000)),
    "another roster": ("other roster", lambda liar: liar.tell(roster=b"another!")),
    "another epoch": ("other roster", lambda liar: liar.tell(epoch=1)),
    "a larger model": ("wrong size", lambda liar: liar.sized(N_PARAMS + 1)),
    "a smaller model": ("wrong size", lambda liar: liar.sized(N_PARAMS - 1)),
    "a huge model": ("wrong size", lambda liar: liar.edited("n_params", b"\xff" * 4)),
    "an offset beyond the end": ("wrong size", lambda liar: liar.edited("offset", b"\xff" * 4)),
    "another schema": ("other schema", lambda liar: liar.edited("schema", b"another!")),
    "another run": ("other run", lambda liar: liar.edited("run", b"another")),
    "a neighbour's name": ("other sender", lambda liar: liar.tell(sender=HONEST[0])),
    "a stranger's name": ("other sender", lambda liar: liar.tell(sender=NodeId("nobody"))),
    "another digest": ("digest", lambda liar: liar.edited("digest", b"another!")),
    "chunks that disagree": ("chunks disagree", lambda liar: [liar.tell()[0], liar.tell(trained=9)[1]]),
    "no numbers": ("not finite", _nan),
    "a flipped bit": ("checksum", lambda liar: [chunk[:-1] + b"\xee" for chunk in liar.tell()]),
    "another version": ("other version", lambda liar: liar.edited("version", b"\2")),
    "another codec": ("unknown codec", lambda liar: liar.edited("codec", b"\2")),
    "half a header": ("truncated", lambda liar: [chunk[:50] for chunk in liar.tell()]),
    "a pickle": ("not ours", lambda liar: [b"\x80\x04\x95" + chunk for chunk in liar.tell()]),
    "the last round, alone": ("", lambda liar: liar.send(liar.model(ROUNDS - 1))[:1]),
    "one round ahead, alone": ("", lambda liar: liar.ahead(1)[:1] if liar.round + 1 < ROUNDS else []),
    "a model that never ends": ("", lambda liar: liar.tell(trained=liar.round)[:2]),
}
"""What is told -> the counter that it costs (nothing where all that it says may be so), and its messages."""


class LyingCluster(Cluster):
    """A fleet one of whose members tells `lie` to everybody; None: it is silent."""

    def __init__(
        self, kind: str, lie: Callable[[Liar], list[bytes]] | None, *, there: bool = True, faults: Faults | None = None
    ) -> None:
        """`there`: on a complete graph it is online and says that it is ready."""
        run = make_run(ROSTER, rounds=ROUNDS, topology=TopologySpec(kind, GRAPHS[kind]))
        faults = faults or Faults()
        late = {**faults.late, LIAR: float("inf")}
        super().__init__(run, ROSTER, replace(faults, late=late), limits=LIMITS)
        self.lie, self.lied = lie, -1
        self.nodes[LIAR].online = there and kind == "complete"
        self.nodes[LIAR].ready = Roster(0, ROSTER).digest().hex()
        for moment in MOMENTS_S:
            self.at(moment, self.speak)

    def speak(self) -> None:
        """Let the liar send everybody its lie of this round."""
        for message in self.lie(Liar(self, max(0, self.lied))) if self.lie else ():
            for other in HONEST:
                self.send(LIAR, other, message)

    def _publish(self, node: Node, effect: fx.PublishUpdate) -> None:
        super()._publish(node, effect)
        if effect.update.round > self.lied:
            self.lied = effect.update.round
            self.speak()

    def accounts(self) -> dict[tuple[NodeId, int], RoundRecord]:
        """Return the honest nodes' rounds but for refusals and times: those may differ."""
        records = [record for node in HONEST for record in self.nodes[node].disk.records]
        return {(r.node, r.round): replace(r, rejected=0, train_s=0.0, collect_s=0.0) for r in records}

    def refusals(self) -> set[str]:
        """Return all reasons that an honest node has counted."""
        machines = [self.nodes[node].machine for node in HONEST]
        return {reason for machine in machines if machine for reason in machine.refusals}


def same_run(one: LyingCluster, two: LyingCluster) -> None:
    """Hold what the honest nodes of two runs decided, mixed, learnt and spent against each other."""
    assert one.accounts() == two.accounts()
    assert len(one.accounts()) == len(HONEST) * ROUNDS
    assert one.models() == two.models()
    for node in HONEST:
        assert one.nodes[node].ledger == two.nodes[node].ledger
        assert one.nodes[node].trainings == two.nodes[node].trainings
        assert one.nodes[node].finished == "all rounds are done"


@cache
def silent(kind: str) -> LyingCluster:
    """Return the run in which the liar says nothing but, on a complete graph, that it is there and ready."""
    cluster = LyingCluster(kind, None)
    cluster.run(2_000.0)
    return cluster


@pytest.mark.parametrize("kind", GRAPHS)
@pytest.mark.parametrize("name", LIES)
def test_a_lie_changes_nothing_but_its_counter(name: str, kind: str) -> None:
    """Decisions, rounds, models to the bit and ledgers are those of a fleet whose sixth member is silent."""
    reason, lie = LIES[name]
    cluster = LyingCluster(kind, lie)
    cluster.run(2_000.0)
    same_run(cluster, silent(kind))
    assert silent(kind).refusals() == set()
    # Before a node knows its round, it cannot tell what is too early: it keeps the first until it begins.
    assert cluster.refusals() - {"duplicate"} == ({reason} if reason else set())


def test_a_silent_peer_and_an_absent_one_are_the_same() -> None:
    """It costs time only."""
    absent = LyingCluster("complete", None, there=False)
    absent.run(2_000.0)
    same_run(absent, silent("complete"))


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_first_of_two_models_counts(kind: str) -> None:
    """Whoever shares two models of one round has shared the first; the second is a duplicate, or late."""

    def first(liar: Liar) -> list[bytes]:
        update = liar.model(liar.round, 0.5)
        liar.cluster.published.setdefault((LIAR, liar.round), {})[update.digest] = update.params
        return liar.send(update)

    def both(liar: Liar) -> list[bytes]:
        return first(liar) + liar.send(liar.model(liar.round, -7.0))

    in_order = Faults(delay_s=(0.02, 0.02))
    honest, lied = (LyingCluster(kind, lie, faults=in_order) for lie in (first, both))
    honest.run(2_000.0)
    lied.run(2_000.0)
    same_run(lied, honest)
    assert any(LIAR in {node for node, _, _ in record.mixed} for record in lied.accounts().values())
    assert "duplicate" in lied.refusals() <= {"duplicate", "late"}


def test_a_liar_that_is_there_first_does_not_take_the_newcomers_along() -> None:
    """Its word for the last round is one of five neighbours': nodes that see nobody else yet go on waiting."""
    late = {node: 3.0 * i for i, node in enumerate(HONEST)}
    cluster = LyingCluster("complete", LIES["the last round, alone"][1], faults=Faults(late=late))
    for tenth in range(200):
        cluster.at(tenth / 10, cluster.speak)
    cluster.run(2_000.0)
    same_run(cluster, silent("complete"))


def test_a_liar_that_is_seen_first_does_not_take_a_restarted_node_along() -> None:
    """After a power cut too, more than half of all neighbours must say where the run is."""
    cluster = Cluster(make_run((ME, *OTHERS), rounds=30), (ME, *OTHERS))
    restart_fleet(cluster, {ME: 4})
    node = cluster.nodes[ME]
    machine = RoundMachine(node.config, np.zeros(N_PARAMS, np.float32), node.ledger, node.disk.snapshot)
    machine.handle(ev.Started(), 0.0)
    machine.handle(ev.PeersChanged({OTHERS[0]: ""}), 0.1)
    machine.handle(ev.RoundAnnounced(OTHERS[0], 29), 0.2)
    assert (machine.phase, machine.round) == (Phase.WAITING, 4)
    machine.handle(ev.PeersChanged(dict.fromkeys(OTHERS, "")), 0.3)
    for other in OTHERS[1:]:
        machine.handle(ev.RoundAnnounced(other, 6), 0.4)
    assert machine.round == 6


def test_who_finds_most_neighbours_gone_joins_with_the_others_at_the_start_timeout() -> None:
    """More than half of all neighbours is asked for only until then; after that, of those who can be reached."""
    machine = start()
    machine.handle(ev.PeersChanged({OTHERS[0]: ""}), 1.0)
    machine.handle(ev.RoundAnnounced(OTHERS[0], 9), 2.0)
    assert machine.phase is Phase.WAITING
    machine.handle(ev.DeadlineReached(), 30.0)
    assert (machine.phase, machine.round) == (Phase.JOINING, 9)


def test_what_a_liar_makes_a_node_count_is_bounded() -> None:
    """Reasons are a few words of ours, none of the sender's: the table of counters does not grow with what is told."""
    machine = start()
    for number in range(1_000):
        told = number.to_bytes(8, "little")
        update = ModelUpdate(OTHERS[0], number, number, told, number, number, np.zeros(N_PARAMS, np.float32), "")
        machine.handle(ev.UpdateReceived(update), 1.0)
    assert machine.refusals == {"other roster": 1_000}
