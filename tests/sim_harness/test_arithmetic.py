"""Arithmetic that is put off gives the bits of the core's, whatever the order, the chains and the threads."""

from __future__ import annotations

import copy

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.mixing import adopt, mix
from agent.core.types import NodeId, Params, params_digest
from sim_harness.arithmetic import Deferred, LateDigest, Mixture, waves


@settings(max_examples=40, deadline=None)
@given(data=st.data(), threads=st.integers(1, 4), size=st.integers(1, 300))
def test_put_off_is_equal_to_at_once(data: st.DataObject, threads: int, size: int) -> None:
    """Mixtures of mixtures, means and digests, asked for in any order and computed at any time."""
    drawn = np.random.default_rng(data.draw(st.integers(0, 99)))
    ours: list[Params] = [drawn.normal(size=size).astype(np.float32) for _ in range(3)]
    theirs = [row.copy() for row in ours]
    digests: list[tuple[str, int]] = []
    deferred = Deferred(threads)
    for step in range(data.draw(st.integers(1, 25))):
        arithmetic = deferred.of(step % 3)
        chosen = data.draw(st.lists(st.integers(0, len(ours) - 1), min_size=1, max_size=5, unique=True))
        names = {NodeId(f"n{data.draw(st.integers(0, 9))}{i}"): i for i in chosen}
        mine = {name: ours[i] for name, i in names.items()}
        core = {name: theirs[i] for name, i in names.items()}
        match data.draw(st.sampled_from(["mix", "adopt", "digest", "flush", "settle"])):
            case "mix":
                weights = {name: (i + 1) / sum(j + 1 for j in names.values()) for name, i in names.items()}
                ours.append(arithmetic.mix(mine, weights))
                theirs.append(mix(core, weights))
            case "adopt":
                ours.append(arithmetic.adopt(mine))
                theirs.append(adopt(core))
            case "digest":
                digests.append((arithmetic.digest(ours[chosen[0]]), chosen[0]))
            case "flush":
                deferred.flush()
                assert deferred.waiting == 0
            case "settle":
                deferred.settle()
                assert all(str(digest) == params_digest(theirs[i]) for digest, i in digests)
    deferred.settle()
    deferred.close()
    assert [row.tobytes() for row in ours] == [row.tobytes() for row in theirs]
    assert all(str(digest) == params_digest(theirs[i]) for digest, i in digests)


def test_a_wave_holds_nothing_that_it_needs_itself() -> None:
    """A chain is cut at every link, and what does not depend on it stays together."""
    rows = [np.zeros(2, np.float32) for _ in range(8)]

    def made(out: int, *sources: int) -> Mixture:
        return Mixture(out, rows[out], tuple(rows[i] for i in sources), (1.0,) * len(sources))

    cut = waves([made(2, 0, 1), made(3, 1), made(4, 2), made(5, 0), made(6, 4, 5), made(7, 0)])
    assert [[mixture.owner for mixture in wave] for wave in cut] == [[2, 3], [4, 5], [6, 7]]
    assert waves([]) == []


def test_a_late_digest_survives_a_checkpoint() -> None:
    """It is empty before it is known, and says the same after it was built again."""
    late = LateDigest()
    assert str(late) == ""
    late.value = "abc"
    assert str(copy.deepcopy(late)) == str(late) == "abc"
