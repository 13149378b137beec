"""What a stranger makes discovery and the mailbox's other end refuse is counted where `status` shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import DiscoverySection
from agent.core import effects as fx
from agent.core import events as ev
from agent.core.types import NodeId
from agent.network.membership import MAX_NODES
from agent.network.transport import ModelChunk, Presence, PresenceSeen, TransportStats
from agent.reach import Reach
from tests.device_rig import device_config
from tests.fuzz.payloads import seeded
from tests.fuzz.victim import SHAPES, Victim, no_transport


def test_a_chunk_that_waited_while_the_roster_changed_is_refused() -> None:
    """What a node sent before it ceased to be a neighbour is neither assembled nor taken for its word."""
    victim = Victim(SHAPES[1])
    sender, chunk = victim.scene.chunk(seeded(5))
    (taken,) = victim.reach.take(ModelChunk(sender, chunk), 0.0)
    assert isinstance(taken, ev.RoundAnnounced)
    victim.reach.watch(fx.WatchNeighbours(frozenset({NodeId("other")}), ""))
    (refused,) = victim.reach.take(ModelChunk(sender, chunk), 0.0)
    assert refused == ev.UpdateRejected("not a neighbour")
    assert victim.reach._assembler.pending_bytes == 0


def test_what_discovery_counts_is_among_the_networks_counters(tmp_path: Path) -> None:
    """Names that lie and names without room are added to what the transport rejected and dropped."""
    config = device_config(tmp_path, discovery=DiscoverySection(mdns=True))
    reach = Reach(config, Victim(SHAPES[0]).form, lambda _item: True, no_transport)
    assert reach._mdns is not None
    reach._mdns._out.count(rejected=2, dropped=3)
    reach.close("end of the test")
    assert reach.stats() == replace(TransportStats(), rejected=2, dropped=3)


def test_strangers_of_other_runs_fill_neither_the_table_nor_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is told of once, and no more of them than the table of nodes has rows; none of them is anybody's peer."""
    reach = Reach(device_config(tmp_path), Victim(SHAPES[0]).form, lambda _item: True, no_transport)
    for number in [*range(3 * MAX_NODES), *range(MAX_NODES)]:
        stranger = Presence(NodeId(f"s{number}"), True, "ab" * 16, "", "cd" * 16, "0.1.0")
        assert not list(reach.take(PresenceSeen(stranger), 0.0))
    assert len(caplog.records) == MAX_NODES
    assert reach.peers(0.0) == ()
