"""Listens on the link as nobody in particular: for a service of our own, the nodes of a fleet, and brokers.

An agent of the same name may be running: so nothing is announced under its name, or under the type of agents.
"""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass

from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo

from agent.network.discovery import DiscoveryFailed
from agent.network.mdns import BROKER_TYPE, NO_PORT, NODE_TYPE
from agent.network.mdns_link import Browse, MdnsLink, Service
from agent.network.outlet import Outlet

DOCTOR_TYPE = "_skt-doctor._tcp.local."
PATIENCE = 3
"""How many times as long as it listens anyway it waits for its own service: announcing alone takes two seconds."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was heard."""

    heard: tuple[str, ...]
    """Interfaces on which our own service was heard; "" is the one that the system chooses."""
    deaf: tuple[str, ...]
    """The others."""
    nodes: frozenset[str]
    """Of the fleet, this one left out."""
    brokers: tuple[tuple[str, int], ...]
    """Address and port of each that says it is the fleet's."""
    trouble: str
    """Why there is no multicast; "" where nothing is known to be wrong."""


class _Ears:
    """Collects what links hear, in their threads."""

    def __init__(self, fleet: str, node: str, interfaces: tuple[str, ...]) -> None:
        self._fleet, self._node = fleet, node
        self._missing = {f"doctor-{secrets.token_hex(6)}": interface for interface in interfaces}
        self.labels = dict(self._missing)
        self.nodes: set[str] = set()
        self.brokers: list[tuple[str, int]] = []
        self.trouble = ""
        self._changed = threading.Condition()

    def post(self, item: object) -> bool:
        """Keep why a link does not work."""
        if isinstance(item, DiscoveryFailed):
            with self._changed:
                self.trouble = item.reason
                self._changed.notify_all()
        return True

    def wants(self, name: str) -> bool:
        """Look at our own services, all brokers, and what is named after the fleet."""
        return name.endswith((DOCTOR_TYPE, BROKER_TYPE)) or name.startswith(f"{self._fleet}-")

    def found(self, name: str, info: AsyncServiceInfo) -> None:
        """Take one resolved instance."""
        label, _, kind = name.partition(".")
        text = {key: (value or b"").decode("ascii", "replace") for key, value in info.properties.items()}
        address = next(iter(info.parsed_addresses(IPVersion.V4Only)), "")
        with self._changed:
            if kind == DOCTOR_TYPE:
                self._missing.pop(label, None)
            elif text.get(b"fleet") != self._fleet:
                return
            elif kind == BROKER_TYPE and address and info.port and (address, info.port) not in self.brokers:
                self.brokers.append((address, info.port))
            elif kind == NODE_TYPE and text.get(b"id") not in (None, "", self._node):
                self.nodes.add(text[b"id"])
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Listen for so long, and up to PATIENCE times as long until all of our own services were heard."""
        began = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: not self._missing or bool(self.trouble), PATIENCE * seconds)
            left = seconds - (time.monotonic() - began)
            if left > 0:
                self._changed.wait_for(lambda: False, left)

    def survey(self) -> Survey:
        """Return all that was heard so far."""
        with self._changed:
            heard = tuple(interface for label, interface in self.labels.items() if label not in self._missing)
            deaf = tuple(self._missing.values())
            return Survey(heard, deaf, frozenset(self.nodes), tuple(self.brokers), self.trouble)


def survey(fleet: str, node: str, interfaces: tuple[str, ...], seconds: float) -> Survey:
    """Announce a throwaway service on each interface, listen for it with another socket, and say who else is there."""
    ears = _Ears(fleet, node, interfaces or ("",))
    browse = Browse((DOCTOR_TYPE, NODE_TYPE, BROKER_TYPE), ears.wants, ears.found, lambda _name: None)
    with ExitStack() as stack:
        for label, interface in ears.labels.items():
            for name, listens in ((label, None), (f"ears-{label}", browse)):
                service = Service(DOCTOR_TYPE, name, NO_PORT, {})
                out, where = Outlet(ears.post), (interface,) if interface else ()
                link = MdnsLink(service, out, interfaces=where, browse=listens)
                stack.callback(link.close)
                link.start()
        ears.wait(seconds)
        return ears.survey()
