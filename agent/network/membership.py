"""Who is there: mDNS, MQTT presence and the static list merged; no I/O, and the time is an argument."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.core.types import NodeId
from agent.network.transport import Presence

MAX_NODES = 1024
"""Nodes that the table holds besides the static list; anybody on the network can invent more."""
STATIC = "static"
MQTT = "mqtt"


@dataclass(frozen=True, slots=True)
class PeerView:
    """One row of the `peers` command; ages in seconds since the source last spoke of the node."""

    node: NodeId
    sources: dict[str, float]
    online: bool
    session: str
    ready: str
    address: str


@dataclass(slots=True)
class _Entry:
    """What is known of one node; `sources` holds the time when each source last spoke."""

    sources: dict[str, float] = field(default_factory=dict)
    known: bool = False
    """Some source other than presence has found it."""
    address: str = ""
    online: bool = False
    session: str = ""
    ready: str = ""


class Membership:
    """The peers of `me`. Presence alone makes no peer live: the static list or discovery must have found it."""

    def __init__(self, me: NodeId, static: Iterable[NodeId] = ()) -> None:
        self._me = me
        self._static = frozenset(static) - {me}
        self._entries = {node: _Entry(known=True) for node in self._static}
        self.overflow = 0
        """Words about nodes that the full table had no room for."""

    def found(self, node: NodeId, source: str, now: float, address: str = "") -> None:
        """Note that `source` (such as `mdns`) has found `node`."""
        entry = self._entry(node)
        if entry is not None:
            entry.sources[source] = now
            entry.known = True
            entry.address = address or entry.address

    def lost(self, node: NodeId, source: str, now: float) -> None:
        """Note that `source` has lost `node`. While it is online it stays live: multicast is lossy, presence is not."""
        del now
        entry = self._entries.get(node)
        if entry is not None:
            entry.sources.pop(source, None)
            self._forget(node, entry)

    def presence(self, presence: Presence, now: float) -> None:
        """Note what a node says of itself; an `offline` of another session than the latest `online` is a late will."""
        entry = self._entry(presence.node)
        if entry is None:
            return
        if presence.online:
            entry.online, entry.session, entry.ready = True, presence.session, presence.ready
        elif entry.session in ("", presence.session):
            entry.online, entry.ready = False, ""
        else:
            return
        entry.sources[MQTT] = now
        self._forget(presence.node, entry)

    def live(self) -> dict[NodeId, str]:
        """Return who is known and online, in node order, with the roster digest that it is ready for (or empty)."""
        return {node: entry.ready for node, entry in sorted(self._entries.items()) if entry.known and entry.online}

    def peers(self, now: float) -> tuple[PeerView, ...]:
        """Return all rows in node order; the static list is always fresh."""
        return tuple(self._view(node, entry, now) for node, entry in sorted(self._entries.items()))

    def _entry(self, node: NodeId) -> _Entry | None:
        """Return the row of `node`, new if there is room; None for ourselves and for who does not fit."""
        if node == self._me:
            return None
        entry = self._entries.get(node)
        if entry is None and len(self._entries) - len(self._static) >= MAX_NODES:
            self.overflow += 1
        elif entry is None:
            entry = self._entries[node] = _Entry()
        return entry

    def _forget(self, node: NodeId, entry: _Entry) -> None:
        """Give up what no source holds any more, so that strangers who left do not fill the table."""
        if entry.online or node in self._static:
            return
        entry.known = any(source != MQTT for source in entry.sources)
        if not entry.known:
            del self._entries[node]

    def _view(self, node: NodeId, entry: _Entry, now: float) -> PeerView:
        sources = {STATIC: 0.0} if node in self._static else {}
        sources |= {source: now - seen for source, seen in sorted(entry.sources.items())}
        return PeerView(node, sources, entry.online, entry.session, entry.ready, entry.address)
