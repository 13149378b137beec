"""The section `network` of a scenario: what befalls messages and nodes in an emulation; the defaults are a perfect one.

Whatever is drawn is a function of the run's seed and of names (a node, an edge, a round, a message's number), so that
equal seeds see equal faults, in whatever order they are asked for. Times are seconds of the emulation's clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Annotated

from msgspec import Meta

from agent.config import CountOrNone, Seconds
from agent.yaml_file import Section, choose

WIRES = ("sizes", "bytes")
Share = Annotated[float, Meta(ge=0, le=1)]
Moment = Annotated[float, Meta(ge=0, le=86_400 * 365 * 100)]
_MAX_DELAY_S = 86_400.0


class CutSection(Section, frozen=True, kw_only=True):
    """A partition of the network: for a while no message passes from one group to another."""

    from_s: Moment
    to_s: Moment
    """The first moment after it."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Node ids; the nodes that stand in no group are one more."""
    share: Share = 0.0
    """In place of groups: this share of the nodes, drawn once for each cut, is cut off from the others."""


class AbsenceSection(Section, frozen=True, kw_only=True):
    """A node that is gone for a while: it neither trains nor sends nor receives."""

    node: str
    from_s: Moment
    to_s: Moment
    """When it is back."""


class ChurnSection(Section, frozen=True, kw_only=True):
    """Nodes that leave and come back: by chance, by a list, or both."""

    mean_up_s: Seconds | None = None
    """A churning node stays for an exponentially distributed time with this mean; left out: none leaves by chance."""
    mean_down_s: Seconds | None = None
    """And is gone for such a time with this mean."""
    share: Share = 1.0
    """This share of the nodes churns by chance, always the same ones."""
    absences: tuple[AbsenceSection, ...] = ()


class StragglersSection(Section, frozen=True, kw_only=True):
    """Nodes that train more slowly than their device does."""

    share: Share = 0.0
    factor: Annotated[float, Meta(ge=1, le=1000)] = 1.0
    """They take so many times as long; the joules of a round stay what they are."""
    every_round: bool = False
    """Drawn anew for each node and round; else once for each node."""


class NetworkSection(Section, frozen=True, kw_only=True):
    """What messages go through on their way, and which nodes are there."""

    delay_s: tuple[Annotated[float, Meta(ge=0, le=_MAX_DELAY_S)], Annotated[float, Meta(ge=0, le=_MAX_DELAY_S)]] = (
        0.0,
        0.0,
    )
    """The least and the most that a message takes, each message's drawn evenly from between them."""
    loss: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of the messages that never arrive."""
    bandwidth_bytes_s: CountOrNone = 0
    """What a node can send in a second, to its neighbours one after the other; 0: without limit."""
    wire: str = "sizes"
    """`sizes`: models are handed over as they are, and counted as if sent; `bytes`: they are cut into messages and put
    together again, as on a device, which is slow and gives the same."""
    partitions: tuple[CutSection, ...] = ()
    churn: ChurnSection = ChurnSection()
    stragglers: StragglersSection = StragglersSection()

    @property
    def is_perfect(self) -> bool:
        """Whether every message arrives at once and every node is always there, as fast as its device."""
        return (
            self.delay_s == (0.0, 0.0)
            and self.loss == 0
            and self.bandwidth_bytes_s == 0
            and not self.partitions
            and not self.churn.absences
            and (self.churn.mean_up_s is None or self.churn.share == 0)
            and (self.stragglers.factor == 1 or self.stragglers.share == 0)
        )


def network_problems(network: NetworkSection, nodes: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield what the types cannot tell, as (path, message)."""
    if network.wire not in WIRES:
        yield "$.network.wire", choose(network.wire, WIRES)
    low, high = network.delay_s
    if not (low <= high < math.inf):
        yield "$.network.delay_s", f"the least delay stands first: [{high:g}, {low:g}]"
    for i, cut in enumerate(network.partitions):
        yield from _cut_problems(cut, f"$.network.partitions[{i}]", nodes)
    churn = network.churn
    if (churn.mean_up_s is None) != (churn.mean_down_s is None):
        yield "$.network.churn", "mean_up_s and mean_down_s are given together"
    for i, absence in enumerate(churn.absences):
        where = f"$.network.churn.absences[{i}]"
        yield from _time_problems(absence.from_s, absence.to_s, where)
        if absence.node not in nodes:
            yield f"{where}.node", f"no such node: {absence.node}"


def _cut_problems(cut: CutSection, where: str, nodes: Collection[str]) -> Iterator[tuple[str, str]]:
    yield from _time_problems(cut.from_s, cut.to_s, where)
    named = list(chain.from_iterable(cut.groups))
    if bool(cut.groups) == (cut.share > 0):
        yield where, "give either `groups` or `share`"
    if strangers := sorted(set(named) - set(nodes)):
        yield f"{where}.groups", f"no such nodes: {', '.join(strangers)}"
    if len(set(named)) != len(named):
        yield f"{where}.groups", "a node stands here twice; it can be in one group only"


def _time_problems(from_s: float, to_s: float, where: str) -> Iterator[tuple[str, str]]:
    if not from_s < to_s:
        yield f"{where}.to_s", f"to_s must come after from_s ({from_s:g})"
