"""Where the nodes of a fleet are computed: all in this process, or some in each of several that exchange numbers.

Every process drives all machines, which is cheap and depends on no model's numbers; it computes numbers for its own
nodes only. What the processes do together they do in the same order everywhere, since they drive the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np

from agent.core.mixing import adopt
from agent.core.types import NodeId, Params
from sim_harness.cohort.engine import Engine
from sim_harness.evidence import params_sha256


@dataclass(frozen=True, slots=True)
class Mixture:
    """A row to be computed: the weighted sum of other rows."""

    owner: int
    """The node, by its place, that has mixed."""
    out: Params
    rows: tuple[Params, ...]
    weights: tuple[float, ...]


class Elsewhere(np.ndarray[Any, np.dtype[np.float32]]):
    """Stands for a row that another process has: as long as that, but without memory. Nobody writes to it."""

    process: int
    received: Params | None
    """The row's numbers, once something here was mixed with it."""

    @classmethod
    def of(cls, process: int, size: int) -> Elsewhere:
        """Return what stands for a row of that process, shape (size,)."""
        made = np.broadcast_to(np.float32(0), size).view(cls)
        made.process, made.received = process, None
        return made


class Wish(IntEnum):
    """What a process wants to be done between two events; the weightiest wish of all is done by all."""

    GO_ON = 0
    CHECKPOINT = 1
    STOP = 2


class Exchange(Protocol):
    """Where the nodes of a fleet are computed, and how rows and results get from one place to another.

    But for `is_here`, `row` and `engine`, whose works do, a call returns when all processes have made it.
    """

    pause: int
    """After so many events the processes agree on what to do next."""
    leads: bool
    """Whether this process writes the files and speaks to people."""
    name: str
    """Of this process's own folder among checkpoints; empty where there is no other."""

    def is_here(self, owner: int) -> bool:
        """Say whether this process computes what that node's models hold."""

    def row(self, owner: int, size: int) -> Params:
        """Return a row of that node for `size` numbers: memory where it is computed here, else what stands for it."""

    def share(self, wave: Sequence[Mixture]) -> list[Mixture]:
        """Return the mixtures that this process computes, with all the rows that they need."""

    def digests(self, found: dict[int, str], owners: Sequence[int]) -> list[str]:
        """Return the digests of rows of these owners, given those of this process by their place in the list."""

    def engine(self, engine: Engine) -> Engine:
        """Return what trains and tests the rows of all nodes, given what does so with those of this process."""

    def measure(self, rows: Sequence[Params], of: Callable[[Params], float]) -> list[float]:
        """Return a number for each row, found where the row is."""

    def average(self, rows: Sequence[Params]) -> Params:
        """Return the plain mean of the rows, summed up in their order, shape (n_params,)."""

    def sha256(self, rows: Sequence[Params]) -> str:
        """Return `params_sha256` of the rows."""

    def agree(self, wish: Wish) -> Wish:
        """Return the weightiest wish of all processes."""

    def newest(self, checkpoint: int) -> int:
        """Return the largest of the numbers that the processes give: the checkpoint that all of them have written."""

    def describe(self) -> dict[str, Any]:
        """Return what summary.json tells of it."""


class Alone:
    """All nodes are computed in this process."""

    pause = 1
    leads = True
    name = ""

    def is_here(self, owner: int) -> bool:  # noqa: ARG002
        """Return True."""
        return True

    def row(self, owner: int, size: int) -> Params:  # noqa: ARG002
        """Return memory."""
        return np.empty(size, np.float32)

    def share(self, wave: Sequence[Mixture]) -> list[Mixture]:
        """Return all of them."""
        return list(wave)

    def digests(self, found: dict[int, str], owners: Sequence[int]) -> list[str]:
        """Return what was found."""
        return [found[i] for i in range(len(owners))]

    def engine(self, engine: Engine) -> Engine:
        """Return the engine."""
        return engine

    def measure(self, rows: Sequence[Params], of: Callable[[Params], float]) -> list[float]:
        """Return a number for each row."""
        return [of(row) for row in rows]

    def average(self, rows: Sequence[Params]) -> Params:
        """Return the plain mean."""
        return plain_mean(rows)

    def sha256(self, rows: Sequence[Params]) -> str:
        """Return the digest."""
        return params_sha256(rows)

    def agree(self, wish: Wish) -> Wish:
        """Return the wish."""
        return wish

    def newest(self, checkpoint: int) -> int:
        """Return the number."""
        return checkpoint

    def describe(self) -> dict[str, Any]:
        """Return the number of processes."""
        return {"processes": 1}


def plain_mean(rows: Sequence[Params]) -> Params:
    """Return what `adopt` of the core makes of the rows, summed up in their order."""
    return adopt({NodeId(f"{i:06d}"): row for i, row in enumerate(rows)})
