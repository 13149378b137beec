"""Golden transcripts: small fleets told line by line, to be read by people and compared by machines.

`<` is an event that comes in, `>` an effect that goes out; in PeersChanged a star marks who is ready for round 0.
Changed on purpose? Run this file with `--rewrite-transcripts`, and understand the diff before you keep it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.core import events as ev
from agent.core.types import NodeId, Roster
from agent.core.wire import MAX_MESSAGE_BYTES
from tests.core.cluster import COST, Cluster, Crash, Cut, Faults, make_run, names

FOLDER = Path(__file__).parent / "transcripts"
A, B, C, D = NODES = names(4)
TRIO = NODES[:3]
LIMITS = dict.fromkeys(NODES, 3 * COST.upper_uj)


def fleet(
    faults: Faults | None = None, *, rounds: int = 4, nodes: tuple[NodeId, ...] = NODES, policy: str = ""
) -> Cluster:
    """Return a fleet in which every model is one message."""
    run = make_run(nodes, rounds=rounds, policy=policy or "skiptrain-constrained")
    return Cluster(run, NODES, faults, limits=LIMITS, chunk_bytes=MAX_MESSAGE_BYTES)


def trio(faults: Faults, *, rounds: int = 3, policy: str = "skiptrain") -> Cluster:
    """Return a fleet of three."""
    run = make_run(TRIO, rounds=rounds, policy=policy)
    return Cluster(run, TRIO, faults, limits=LIMITS, chunk_bytes=MAX_MESSAGE_BYTES)


def clean() -> Cluster:
    """Four nodes, skiptrain-constrained, nothing goes wrong."""
    return fleet().run(500)


def neighbour_dies() -> Cluster:
    """Let a neighbour die in mid-round for good: it is awaited for the offline grace, once."""
    return trio(Faults(crashes=(Crash(B, float("inf"), at_s=0.3),))).run(100)


def restart_with_reservation() -> Cluster:
    """Cut the power in mid-training: what was reserved stays charged, and the round is shared untrained."""
    return trio(Faults(crashes=(Crash(B, 3.0, at_s=0.3),))).run(500)


def late_joiner() -> Cluster:
    """Two begin at the start timeout; the third finds the run going, adopts, and takes part from the next round on."""
    return trio(Faults(late={C: 31.0}), rounds=5).run(500)


def lagging_node_jumps() -> Cluster:
    """Cut a node off for more than a deadline: it jumps to the fleet's round and does not train in it."""
    return trio(Faults(cuts=(Cut(A, 1.2, 24.0),), training_s=(4.0, 5.0)), rounds=9).run(500)


def training_fails() -> Cluster:
    """Let a training end in NaN: it is charged, and the old model is shared."""
    return trio(Faults(failing=frozenset({(A, 0)}))).run(500)


def start_timeout() -> Cluster:
    """One node is missing for good: the others begin at the start timeout, and never wait for it."""
    return trio(Faults(late={C: float("inf")}), rounds=2).run(500)


def stop_in_training() -> Cluster:
    """Stop a node in mid-training: the training ends between two steps, is settled, and the work is saved."""
    cluster = trio(Faults())
    cluster.at(0.3, lambda: cluster.step(cluster.nodes[A], ev.StopRequested("SIGTERM")))
    return cluster.run(500)


def training_will_not_end() -> Cluster:
    """Let a training outlast its round: it is asked to end, then ended, and nobody waits for longer than that."""
    return trio(Faults(stubborn=frozenset({(A, 0)})), rounds=2).run(500)


def roster_changes() -> Cluster:
    """One epoch lets d join from round 3 on, the next lets b leave from round 5 on."""
    cluster = fleet(rounds=7, nodes=TRIO, policy="d-psgd")
    cluster.at(1.0, lambda: cluster.change_roster(Roster(1, NODES, 3)))
    cluster.at(1.1, lambda: cluster.change_roster(Roster(2, (A, C, D), 5)))
    return cluster.run(500)


STORIES: dict[str, Callable[[], Cluster]] = {
    story.__name__: story
    for story in (
        clean,
        neighbour_dies,
        restart_with_reservation,
        late_joiner,
        lagging_node_jumps,
        training_fails,
        start_timeout,
        stop_in_training,
        training_will_not_end,
        roster_changes,
    )
}


@pytest.mark.parametrize("name", STORIES)
def test_transcript(name: str, request: pytest.FixtureRequest) -> None:
    """A story is told word by word as it was when a person last read it."""
    story = STORIES[name]
    told = "\n".join([f"# {story.__doc__}", *story().trace]) + "\n"
    path = FOLDER / f"{name}.txt"
    if request.config.getoption("--rewrite-transcripts"):
        path.write_text(told, encoding="utf-8")
    assert path.exists(), f"{path} is not there: run pytest with --rewrite-transcripts"
    assert told == path.read_text(encoding="utf-8"), "read the difference; if it is meant: --rewrite-transcripts"


def test_no_transcript_is_left_over() -> None:
    """Every file in the folder belongs to a story."""
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(STORIES)
