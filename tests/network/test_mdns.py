"""Discovery with real sockets on loopback."""

from __future__ import annotations

import socket
import struct
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from network_rig import ANY_TIME, LogBox, Mailbox
from zeroconf.asyncio import AsyncServiceInfo

from agent.core.types import NodeId
from agent.errors import ConfigError
from agent.network.mdns import (
    MAX_STRANGERS,
    NODE_TYPE,
    BrokerFound,
    DiscoveryFailed,
    Mdns,
    NameConflict,
    OtherFleet,
    PeerFound,
    PeerLost,
    advertise_broker,
)
from agent.network.mdns_link import MAX_NAMES, MDNS_GROUP, RESOLVERS, Browse, MdnsLink, Service, _Names
from agent.network.outlet import Outlet

LOOPBACK = ("127.0.0.1",)


@pytest.fixture
def stack(no_thread_left: None) -> Iterator[ExitStack]:
    """Give a stack that closes what a test opens, before the threads are counted."""
    del no_thread_left
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def fleet() -> str:
    """Give a name that no other test on this machine uses at the same time."""
    return f"f{uuid.uuid4().hex[:10]}"


def join(stack: ExitStack, fleet: str, node: str, **options: Any) -> tuple[Mdns, Mailbox]:
    """Return a started discovery on loopback."""
    box = Mailbox()
    mdns = Mdns(fleet, NodeId(node), box.post, interfaces=LOOPBACK, **options)
    stack.callback(mdns.close)
    mdns.start()
    return mdns, box


def found(box: Mailbox) -> set[str]:
    """Return the nodes found so far."""
    return {item.node for item in box.items if isinstance(item, PeerFound)}


def test_four_nodes_find_each_other_and_a_broker(stack: ExitStack, fleet: str) -> None:
    """Nodes of one fleet find each other and the fleet's broker; another fleet on the link is told apart."""
    advert_box = Mailbox()
    stack.callback(advertise_broker(fleet, 1883, advert_box.post, interfaces=LOOPBACK).close)
    stack.callback(advertise_broker(f"{fleet}x", 1884, advert_box.post, interfaces=LOOPBACK).close)
    _, foreign = join(stack, f"{fleet}-x", "n9")
    nodes = {f"n{i}": join(stack, fleet, f"n{i}", find_broker=True) for i in range(4)}
    for node, (_, box) in nodes.items():
        box.of(PeerFound, 3)
        assert found(box) == set(nodes) - {node}
        assert box.of(BrokerFound)[0] == BrokerFound("127.0.0.1", 1883)
        assert {item.port for item in box.items if isinstance(item, BrokerFound)} == {1883}
    nodes["n3"][0].close()
    for _, box in list(nodes.values())[:3]:
        assert box.of(PeerLost)[0] == PeerLost(NodeId("n3"))
    foreign.wait(lambda item: isinstance(item, OtherFleet) and item.fleet == fleet and item.node in nodes)
    assert not found(foreign)
    assert not advert_box.items


def test_a_name_that_is_taken_is_posted_and_the_node_goes_on(stack: ExitStack, fleet: str) -> None:
    """A copy of a device hears of the conflict, stays unannounced, and still finds its peers."""
    _, first = join(stack, fleet, "n1")
    _, other = join(stack, fleet, "n2")
    other.of(PeerFound)
    first.of(PeerFound)
    _, copy = join(stack, fleet, "n1")
    assert "n1" in copy.of(NameConflict)[0].detail
    assert copy.of(PeerFound)[0].node == "n2"


def test_a_lying_record_is_not_a_peer(stack: ExitStack, fleet: str) -> None:
    """A record whose id is not its name, whose protocol is another, or whose id is none is not posted."""
    lies = {"n5": {"id": "n6"}, "n7": {"proto": "2"}, "n8": {"id": ""}, "n4": {"fleet": "other"}}
    for label, lie in lies.items():
        txt = {"txtvers": "1", "fleet": fleet, "id": label, "proto": "1", "role": "node", **lie}
        link = MdnsLink(Service(NODE_TYPE, f"{fleet}-{label}", 9, txt), Outlet(lambda _item: True), interfaces=LOOPBACK)
        stack.callback(link.close)
        link.start()
    n1, box = join(stack, fleet, "n1")
    join(stack, fleet, "n2")
    box.of(PeerFound)
    assert found(box) == {"n2"}
    assert n1.stats().rejected <= 3  # as many of the four as have come; the one of another fleet is no lie


def pointer(label: bytes) -> bytes:
    """Return a packet that says that there is an instance called `label`: one PTR record, 120 s."""
    service = b"".join(bytes([len(part)]) + part for part in (b"_skiptrain", b"_tcp", b"local")) + b"\0"
    alias = bytes([len(label)]) + label + service
    return (
        struct.pack(">HHHHHH", 0, 0x8400, 0, 1, 0, 0) + service + struct.pack(">HHIH", 12, 1, 120, len(alias)) + alias
    )


def test_names_that_cannot_be_end_no_resolver(stack: ExitStack, fleet: str) -> None:
    """Control characters, broken UTF-8 and labels that only grow too long when read cost a count; peers are found."""
    n1, box = join(stack, fleet, "n1")
    join(stack, fleet, "n2")
    box.of(PeerFound)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hostile:
        hostile.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK[0]))
        for i in range(3 * RESOLVERS):
            for bad in (b"\x01", b"\xff" * 40, b"\x7f"):
                hostile.sendto(pointer(f"{fleet}-{i}".encode() + bad), MDNS_GROUP)
    join(stack, fleet, "n3")
    box.of(PeerFound, 2)
    assert found(box) == {"n2", "n3"}
    assert n1.stats().rejected >= RESOLVERS


def test_names_that_come_and_go_do_not_pile_up(fleet: str) -> None:
    """Whoever invents names and takes them back at once fills the queue of those to resolve up to its bound."""
    out = Outlet(lambda _item: True)
    link = MdnsLink(Service(NODE_TYPE, f"{fleet}-n1", 9, {}), out, interfaces=LOOPBACK)
    link.close()
    names, browse = _Names(), Browse((NODE_TYPE,), lambda _name: True, lambda _name, _info: None, lambda _name: None)
    for i in range(3 * MAX_NAMES):
        for gone in (False, True):
            link._note(names, browse, NODE_TYPE, f"{fleet}-{i}.{NODE_TYPE}", gone=gone)
    assert (len(names.queued), names.waiting.qsize(), len(names.followed)) == (MAX_NAMES, MAX_NAMES, 0)
    assert out.stats().dropped == 2 * MAX_NAMES


def test_no_multicast_is_posted_once_and_ends_quickly(stack: ExitStack, fleet: str, log: LogBox) -> None:
    """Where the interface is missing, discovery says so in one line and one value, and can be closed at once."""
    box = Mailbox()
    mdns = Mdns(fleet, NodeId("n1"), box.post, interfaces=("192.0.2.1",))
    stack.callback(mdns.close)
    mdns.start()
    assert box.of(DiscoveryFailed)[0].reason
    mdns.close()
    mdns.close()
    assert len(box.items) == 1
    assert log.count("mdns does not work here") == 1


def test_close_without_start(stack: ExitStack, fleet: str) -> None:
    """A discovery that was never started can be closed, twice."""
    mdns = Mdns(fleet, NodeId("n1"), Mailbox().post)
    stack.callback(mdns.close)
    mdns.close()


def test_names_that_are_none_are_refused() -> None:
    """Fleet and node share one DNS label of 63 bytes, into which two names always fit."""
    for fleet, node in (("f" * 32, "n1"), ("f0", "a-" * 30 + "a"), ("F", "n1")):
        with pytest.raises(ConfigError, match=r"mDNS: .* is no name: use a-z"):
            Mdns(fleet, NodeId(node), Mailbox().post)
    longest = Mdns("f" * 31, NodeId("n" * 31), Mailbox().post)
    longest.close()
    assert len(longest._link._service.label) == 63


@ANY_TIME
@given(st.dictionaries(st.binary(max_size=9), st.none() | st.binary(max_size=40)), st.text(max_size=60))
def test_hostile_records_are_no_peers(properties: dict[bytes, bytes | None], name: str) -> None:
    """Whatever a TXT record holds, judging it raises nothing and posts no peer."""
    box = Mailbox()
    mdns = Mdns("f0", NodeId("n1"), box.post)
    mdns.close()
    info = AsyncServiceInfo(NODE_TYPE, f"x.{NODE_TYPE}", port=9, properties=properties, addresses=[b"\x7f\0\0\1"])
    mdns._found(f"{name}.{NODE_TYPE}", info)
    assert not box.items


def test_the_link_may_hold_any_number_of_other_fleets() -> None:
    """A few nodes of other fleets are looked at, always the same ones; our own and brokers are, however many."""
    mdns = Mdns("home", NodeId("a"), Mailbox().post)
    strangers = [f"kitchen-n{i}.{NODE_TYPE}" for i in range(3 * MAX_STRANGERS)]
    for _ in range(2):
        assert [mdns._wants(name) for name in strangers] == [True] * MAX_STRANGERS + [False] * (2 * MAX_STRANGERS)
    assert all(mdns._wants(f"home-n{i}.{NODE_TYPE}") for i in range(3 * MAX_STRANGERS))
    mdns.close()
