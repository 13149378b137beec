"""The way out of a library's thread: posts, counts, and never raises."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from agent.network.transport import Post, TransportStats

_log = logging.getLogger(__name__)


class Outlet:
    """Posts to the mailbox, and counts what is lost there and everything else that TransportStats names."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def emit(self, item: object) -> None:
        """Post `item`; count it as dropped where the mailbox is full."""
        if not self._post(item):
            self.count(dropped=1)

    def count(self, **amounts: int) -> None:
        """Add to the counters named as the fields of TransportStats."""
        with self._lock:
            for name, amount in amounts.items():
                self._counts[name] = self._counts.get(name, 0) + amount

    def guard(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Return `callback` such that its exception is logged and counted instead of ending the library's thread."""

        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                callback(*args, **kwargs)
            except Exception:  # noqa: BLE001  # whatever it is, the library's thread must live
                self.count(callback_errors=1)
                _log.exception("network callback %s failed; the connection goes on", callback.__name__)

        return guarded

    def stats(self) -> TransportStats:
        """Return the counters as they stand."""
        with self._lock:
            return TransportStats(**self._counts)
