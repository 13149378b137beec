"""One zeroconf responder and browser in a thread of its own; what it hears is resolved with bounded work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from zeroconf import InterfaceChoice, IPVersion, NonUniqueNameException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from agent.network.discovery import DiscoveryFailed, NameConflict
from agent.network.outlet import Outlet

_log = logging.getLogger(__name__)

MAX_NAMES = 1024
"""Instances that are followed at once; anybody on the link can invent more."""
RESOLVERS = 8
RESOLVE_MS = 3000
RETRY_S = 30.0
CLOSE_S = 10.0
MDNS_GROUP = ("224.0.0.251", 5353)


@dataclass(frozen=True, slots=True)
class Service:
    """What to announce: the DNS label of the instance, its type, and its TXT record."""

    type: str
    label: str
    port: int
    txt: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Browse:
    """What to listen for; all three functions run in the link's thread and must be quick."""

    types: tuple[str, ...]
    wants: Callable[[str], bool]
    """Whether an instance of this name is worth a resolution at all."""
    found: Callable[[str, AsyncServiceInfo], None]
    lost: Callable[[str], None]


@dataclass(slots=True)
class _Names:
    """Instances followed, and those of them that wait for a resolver."""

    followed: set[str] = field(default_factory=set)
    waiting: asyncio.Queue[tuple[str, str]] = field(default_factory=asyncio.Queue)
    queued: set[str] = field(default_factory=set)


class MdnsLink:
    """Announces one service and browses, from `start` to `close`; a link without multicast is tried again for ever."""

    def __init__(
        self, service: Service, out: Outlet, *, interfaces: tuple[str, ...] = (), browse: Browse | None = None
    ) -> None:
        self._service = service
        self._out = out
        self._interfaces = interfaces
        self._browse = browse
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"mdns-{service.label}", daemon=True)
        self._failure = ""

    def start(self) -> None:
        """Begin in the background: announcing alone takes about two seconds."""
        self._thread.start()

    def close(self) -> None:
        """Say goodbye on the link and end the thread; idempotent."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: this was done before
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.ident is None:
            self._loop.close()
        else:
            self._thread.join(CLOSE_S)

    # ---- the link's thread

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        while not self._stop.is_set():
            await self._attempt()

    async def _attempt(self) -> None:
        try:
            await self._serve()
        except Exception as error:  # noqa: BLE001  # without multicast it is OSError, RuntimeError or zeroconf's own
            self._fail(f"{type(error).__name__}: {error}")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), RETRY_S)

    async def _serve(self) -> None:
        """Announce and browse until `close`; raise where the link has no multicast."""
        addresses = _own_addresses(self._interfaces)
        choice = list(self._interfaces) or InterfaceChoice.Default
        zeroconf = AsyncZeroconf(interfaces=choice, ip_version=IPVersion.V4Only)
        names = _Names()
        tasks = [asyncio.create_task(self._announce(zeroconf, addresses))]
        browser = None
        if self._browse is not None:
            tasks += [asyncio.create_task(self._resolve(zeroconf, names, self._browse)) for _ in range(RESOLVERS)]
            browser = self._listen(zeroconf, names, self._browse)
        try:
            await self._stop.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if browser is not None:
                await browser.async_cancel()
            await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()

    async def _announce(self, zeroconf: AsyncZeroconf, addresses: tuple[str, ...]) -> None:
        service = self._service
        info = AsyncServiceInfo(
            service.type,
            f"{service.label}.{service.type}",
            port=service.port,
            addresses=[socket.inet_aton(address) for address in addresses],
            properties=dict(service.txt),
            server=f"{service.label}.skt.local.",
        )
        try:
            await (await zeroconf.async_register_service(info))
        except NonUniqueNameException:
            detail = f"another host on this link is announced as {service.label}: is it a copy of this device?"
            _log.warning("mdns: %s; going on unannounced", detail)
            self._out.emit(NameConflict(detail))
        except Exception as error:  # noqa: BLE001  # browsing goes on, and the reason is posted
            self._fail(f"{type(error).__name__}: {error}")

    def _listen(self, zeroconf: AsyncZeroconf, names: _Names, browse: Browse) -> AsyncServiceBrowser:
        def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
            del zeroconf
            self._note(names, browse, service_type, name, gone=state_change is ServiceStateChange.Removed)

        return AsyncServiceBrowser(zeroconf.zeroconf, list(browse.types), handlers=[self._out.guard(changed)])

    def _note(self, names: _Names, browse: Browse, service_type: str, name: str, *, gone: bool) -> None:
        """Follow a name that came, and have it resolved, where there is room; forget one that went."""
        if gone:
            names.followed.discard(name)
            browse.lost(name)
        elif name not in names.queued and browse.wants(name):
            new = name not in names.followed
            if len(names.queued) >= MAX_NAMES or (new and len(names.followed) >= MAX_NAMES):
                self._out.count(dropped=1)
                return
            names.followed.add(name)
            names.queued.add(name)
            names.waiting.put_nowait((service_type, name))

    async def _resolve(self, zeroconf: AsyncZeroconf, names: _Names, browse: Browse) -> None:
        found = self._out.guard(browse.found)
        while True:
            service_type, name = await names.waiting.get()
            names.queued.discard(name)
            try:
                info = AsyncServiceInfo(service_type, name)
                known = await info.async_request(zeroconf.zeroconf, RESOLVE_MS)
            except Exception:  # noqa: BLE001  # a name that somebody invented must not end a resolver
                names.followed.discard(name)
                self._out.count(rejected=1)
                continue
            if known and name in names.followed:
                found(name, info)

    def _fail(self, reason: str) -> None:
        """Say it once, not with every retry."""
        if reason != self._failure:
            self._failure = reason
            _log.warning("mdns does not work here (%s): peers and broker must be configured, or come later", reason)
            self._out.emit(DiscoveryFailed(reason))


def _own_addresses(interfaces: tuple[str, ...]) -> tuple[str, ...]:
    """Return `interfaces`, each an address of this host, or the one that multicast leaves by; OSError if there is none.

    Nothing is sent. zeroconf would find out as well, but leave its sockets open.
    """
    if interfaces:
        for address in interfaces:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((address, 0))
        return interfaces
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(MDNS_GROUP)
        return (str(probe.getsockname()[0]),)
