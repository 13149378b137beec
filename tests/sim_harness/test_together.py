"""The numbers that processes have together: the bits of one process, each row sent once; with threads for processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.types import ModelShape, NodeId, Params
from agent.errors import ConfigError
from agent.learning.data import Dataset
from sim_harness import checkpoint
from sim_harness.alike import check_alike
from sim_harness.arithmetic import Deferred
from sim_harness.cohort.engine import Corpus
from sim_harness.distributed import World
from sim_harness.exchange import Alone, Elsewhere, Exchange, Wish
from sim_harness.together import Together

T = TypeVar("T")


@dataclass
class Meeting:
    """What the threads of one world share."""

    size: int
    values: list[Any] = field(default_factory=list)
    rows: dict[tuple[int, int], SimpleQueue[Params]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=20)
        self.values = [None] * self.size
        self.rows = {(a, b): SimpleQueue() for a in range(self.size) for b in range(self.size)}


@dataclass
class Thread(World):
    """A World whose processes are threads."""

    meeting: Meeting | None = None

    def gather(self, value: Any, of: Any) -> list[Any]:
        """Return what all give, as it is read from bytes."""
        assert self.meeting is not None
        self.meeting.values[self.rank] = msgspec.msgpack.encode(value)
        self.meeting.barrier.wait()
        found = [msgspec.msgpack.decode(text, type=of) for text in self.meeting.values]
        self.meeting.barrier.wait()
        return found

    def largest(self, number: int) -> int:
        """Return the largest."""
        return max(self.gather(int(number), int))

    def swap(self, give: Mapping[int, Sequence[Any]], take: Mapping[int, Sequence[Params]]) -> None:
        """Send and receive copies."""
        assert self.meeting is not None
        for rank, rows in give.items():
            for row in rows:
                self.sent_bytes += row.nbytes
                self.meeting.rows[self.rank, rank].put(row.copy())
        for rank, rows in take.items():
            for row in rows:
                row[:] = self.meeting.rows[rank, self.rank].get(timeout=20)


def with_all(size: int, nodes: int, do: Callable[[Exchange], T]) -> list[T]:
    """Return what `do` returns in each of `size` processes that emulate a ring."""
    meeting = Meeting(size)
    edges = [sorted({(i - 1) % nodes, (i + 1) % nodes} - {i}) for i in range(nodes)]
    with ThreadPoolExecutor(size) as pool:
        worlds = [Thread(rank, size, meeting=meeting) for rank in range(size)]
        found = list(pool.map(lambda world: do(Together(world, edges, INITIAL)), worlds))
    assert all(queue.empty() for queue in meeting.rows.values()), "somebody sent what nobody took"
    return found


INITIAL = np.zeros(7, np.float32)


def rows_of(exchange: Exchange, nodes: int, size: int = 7) -> list[Params]:
    """Return a row of each node, the same numbers in any number of processes; every third node has the first one."""
    rows = []
    for node in range(nodes):
        row = exchange.row(node, size)
        if exchange.is_here(node):
            row[:] = np.random.default_rng(node).standard_normal(size, np.float32)
        rows.append(INITIAL if node % 3 == 2 and size == 7 else row)
    return rows


@given(st.integers(1, 9), st.integers(2, 4), st.integers(1, 9))
def test_numbers_of_many_rows_have_the_bits_of_one_process(nodes: int, size: int, params: int) -> None:
    """Average, distances and digest, whatever the sizes; every process gets them."""

    def numbers(exchange: Exchange) -> tuple[bytes, list[float], str]:
        rows = rows_of(exchange, nodes, params)
        average = exchange.average(rows)
        distances = exchange.measure(rows, lambda row: float(np.square(row - average, dtype=np.float64).sum()))
        return average.tobytes(), distances, exchange.sha256(rows)

    alone = numbers(Alone())
    together = with_all(size, nodes, numbers)
    assert [found[:2] for found in together] == [alone[:2]] * size
    assert [found[2] for found in together] == [alone[2]] * size


def mixed_twice(exchange: Exchange) -> list[str]:
    """Mix each node's row with its neighbours', and the results again, some of them of one row twice."""
    nodes, arithmetic = 6, Deferred(1, exchange)
    rows = rows_of(exchange, nodes)
    for weight in (0.25, 0.3):
        made = []
        for node in range(nodes):
            near = {NodeId(f"n{i}"): rows[i] for i in (node, (node + 1) % nodes, (node - 1) % nodes)}
            made.append(arithmetic.of(node).mix(near, dict.fromkeys(near, weight)))
        again = arithmetic.of(0).mix({NodeId("a"): rows[2], NodeId("b"): rows[3]}, {NodeId("a"): 0.5, NodeId("b"): 0.5})
        rows = made
        rows[0] = again
    digests = [arithmetic.of(node).digest(row) for node, row in enumerate(rows)]
    arithmetic.settle()
    arithmetic.close()
    return [str(digest) for digest in digests]


@pytest.mark.parametrize("size", [2, 3, 6])
def test_mixtures_of_mixtures_have_the_bits_of_one_process(size: int) -> None:
    """Waves of rows that need each other's rows; nothing is sent that nobody waits for."""
    assert with_all(size, 6, mixed_twice) == [mixed_twice(Alone())] * size


def test_a_row_is_sent_to_a_process_once() -> None:
    """Two nodes of one process mix the same row of another one, now and later; its bytes go there once."""

    def sent(exchange: Exchange) -> int:
        rows = [exchange.row(node, 7) for node in range(4)]
        for row in rows:
            if not isinstance(row, Elsewhere):
                row[:] = 1
        arithmetic = Deferred(1, exchange)
        foreign = next(i for i in range(4) if exchange.is_here(i) != exchange.is_here(0))
        for _ in range(2):
            for node in (i for i in range(4) if exchange.is_here(i) == exchange.is_here(0)):
                arithmetic.of(node).mix({NodeId("a"): rows[foreign]}, {NodeId("a"): 1.0})
            arithmetic.flush()
        arithmetic.close()
        return int(exchange.describe()["exchanged_bytes"])

    assert with_all(2, 4, sent) == [7 * 4] * 2


@dataclass(frozen=True)
class Kind:
    """An engine that knows what it is."""

    kind: str = "native"

    def describe(self) -> dict[str, Any]:
        """Return it."""
        return {"kind": self.kind, "precision": "fp32", "workers": 3}


def corpus(label: int = 0) -> Corpus:
    """Return data of two nodes."""
    samples = Dataset(np.zeros((4, 1, 8, 8), np.float32), np.array([0, 1, 2, label]), "made up")
    halves = (np.array([0, 1]), np.array([2, 3]))
    return Corpus(ModelShape("small-cnn", (1, 8, 8), 10), samples, halves, halves, samples)


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("scenario", ("seed: 2", corpus(), Kind(), False)),
        ("data", ("seed: 1", corpus(1), Kind(), False)),
        ("engine", ("seed: 1", corpus(), Kind("stacked"), False)),
        ("resume", ("seed: 1", corpus(), Kind(), True)),
    ],
)
def test_processes_that_differ_do_not_begin(what: str, other: tuple[str, Corpus, Any, bool]) -> None:
    """All say what differs, and what to do; processes that are alike go on."""
    meeting, alike = Meeting(2), ("seed: 1", corpus(), Kind(), False)

    def greet(rank: int, scenario: str, data: Corpus, engine: Any, resume: bool) -> str:
        try:
            check_alike(Thread(rank, 2, meeting=meeting), scenario, data, engine, resume=resume)
        except ConfigError as error:
            return str(error)
        return "alike"

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda rank: greet(rank, *alike), range(2))) == ["alike", "alike"]
        said = list(pool.map(lambda rank: greet(rank, *(other if rank else alike)), range(2)))
    assert said[0] == said[1]
    assert said[0].startswith(f"process 1 has another {what} (")


@pytest.mark.parametrize("wishes", [(0, 0), (0, 1), (1, 2), (2, 0)])
def test_the_weightiest_wish_is_done(wishes: tuple[int, int]) -> None:
    """One process that must stop stops all."""
    found = with_all(2, 4, lambda exchange: exchange.agree(Wish(wishes[int(not exchange.leads)])))
    assert found == [max(wishes)] * 2


def test_what_stands_for_a_row_survives_a_checkpoint_as_one_thing(tmp_path: Path) -> None:
    """It takes no memory and no disk, and is the same object wherever it was; what was received is asked for again."""
    away, other, row = Elsewhere.of(1, 1_000_000), Elsewhere.of(2, 1_000_000), np.ones(3, np.float32)
    away.received = np.ones(1_000_000, np.float32)
    checkpoint.save(tmp_path, 1, [away, row, away, other], {})
    number, (first, kept, second, third) = checkpoint.load(tmp_path, {})
    assert first is second
    assert [(found.process, len(found), found.received) for found in (first, third)] == [
        (1, 1_000_000, None),
        (2, 1_000_000, None),
    ]
    assert (number, kept.tolist()) == (1, [1, 1, 1])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 20_000


def test_a_checkpoint_that_another_process_has_already_begun_to_use_is_taken(tmp_path: Path) -> None:
    """One was stopped between writing its part and saying that it is the newest one."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    checkpoint.save(tmp_path, 1, ["old"], {})
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, ["new"], {}, interrupted)
    assert checkpoint.load(tmp_path, {}) == (1, ["old"])
    assert checkpoint.load(tmp_path, {}, lambda number: max(number, 2)) == (2, ["new"])
