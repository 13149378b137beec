"""The words of the core: ids, digests and schedules."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from agent.core.types import NODE_ID, ModelShape, Roster, Schedule, TopologySpec, params_digest
from agent.core.wire import _ID_BYTES
from tests.core.cluster import make_run, names

RUN = make_run(names(3))
CHANGES: dict[str, object] = {
    "run_id": "other",
    "seed": 8,
    "model": ModelShape("toy", (1, 1, 1), 3),
    "schedule": Schedule(2, 1, 7),
    "policy": "greedy",
    "topology": TopologySpec("ring"),
    "roster": names(4),
    "expect_nodes": 1,
    "start_timeout_s": 31.0,
    "round_deadline_s": 21.0,
    "mode": "async",
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_of_a_run_is_in_its_digest(name: str) -> None:
    """Whoever differs in anything that must be agreed has another digest."""
    assert set(CHANGES) == {field.name for field in fields(RUN)}
    changed = replace(RUN, **{name: CHANGES[name]})  # type: ignore[arg-type]  # a test changes any field
    assert changed.digest() != RUN.digest()
    assert len(RUN.digest()) == 16


def test_digests_of_runs_and_rosters_are_pinned() -> None:
    """Nodes of different versions must agree on the bytes: these change only with the wire format."""
    assert RUN.digest().hex() == "f2d640d4a4530ada4d3dbf59d4dc561b"
    assert Roster(1, names(3), 5).digest().hex() == "afc716c6bc9efb88"


def test_rosters_differ_by_epoch_round_and_members() -> None:
    """Two rosters of the same epoch are told apart."""
    rosters = [Roster(1, names(3), 5), Roster(2, names(3), 5), Roster(1, names(4), 5), Roster(1, names(3), 6)]
    assert len({roster.digest() for roster in rosters}) == 4


@pytest.mark.parametrize("name", ["a", "pi-4b", "0", "a-b-c-d", "a" * 31, "a-" * 15 + "a"])
def test_node_ids(name: str) -> None:
    """Small letters, digits and single inner dashes, and every one fits into a header."""
    assert NODE_ID.fullmatch(name)
    assert len(name.encode()) < _ID_BYTES


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a--b", "A", "ä", "a_b", "a.b", "a/b", "a b", "a\n", "a" * 32, "a-" * 16 + "a", "#", "+"]
)
def test_names_that_are_no_node_ids(name: str) -> None:
    """Nothing that MQTT, DNS, a file system or the header would mistake, and nothing too long for the header."""
    assert not NODE_ID.fullmatch(name)


@pytest.mark.parametrize("schedule", [Schedule(1, 0, 9), Schedule(3, 3, 1000), Schedule(4, 2, 1000), Schedule(2, 5, 3)])
def test_slots_are_what_counting_gives(schedule: Schedule) -> None:
    """`training_slots(start)` is the number of training rounds in [start, total), for every start."""
    kinds = [schedule.kind(t).value == "training" for t in range(schedule.total_rounds)]
    for start in range(schedule.total_rounds + 3):
        assert schedule.training_slots(start) == sum(kinds[start:])


def test_params_digest_is_of_little_endian_float32() -> None:
    """The digest does not depend on strides or byte order in memory."""
    params = np.arange(6, dtype=np.float32)
    assert params_digest(params) == params_digest(np.repeat(params, 2)[::2])
    assert params_digest(params) == params_digest(params.astype(">f4"))
    assert params_digest(params) != params_digest(params + 1)
    assert len(params_digest(params)) == 16
