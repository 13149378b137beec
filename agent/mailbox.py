"""The one way into a daemon: bounded for what the network sends, never full for the daemon's own parts."""

from __future__ import annotations

import threading
from collections import deque

from agent.network.transport import ModelChunk

MAX_ITEMS = 10_000
MAX_WAITING_CHUNKS = MAX_ITEMS // 2
"""Model chunks get half of the places, so that a flood of them pushes out no presence and no acknowledgement."""
MAX_BYTES = 64 << 20
"""Model chunks wait here in at most this much memory; more are dropped and counted by who sent them in."""


class Mailbox:
    """Many threads post, one takes."""

    def __init__(self) -> None:
        self._items: deque[object] = deque()
        self._bytes = self._chunks = 0
        self._changed = threading.Condition()

    def post(self, item: object) -> bool:
        """Add what came from outside; False when there is no room for it. Never blocks."""
        with self._changed:
            if len(self._items) >= MAX_ITEMS:
                return False
            if isinstance(item, ModelChunk):
                if self._chunks >= MAX_WAITING_CHUNKS or self._bytes + len(item.payload) > MAX_BYTES:
                    return False
                self._chunks += 1
                self._bytes += len(item.payload)
            self._put(item)
        return True

    def post_own(self, item: object) -> None:
        """Add what must not be lost: answers of the trainer, requests to stop; there are few of them."""
        with self._changed:
            self._put(item)

    def take(self, timeout_s: float | None) -> object | None:
        """Return the oldest item, waiting at most `timeout_s`; None when there is none."""
        with self._changed:
            if not self._items and not self._changed.wait_for(lambda: bool(self._items), timeout_s):
                return None
            item = self._items.popleft()
            if isinstance(item, ModelChunk):
                self._chunks -= 1
                self._bytes -= len(item.payload)
            return item

    def _put(self, item: object) -> None:
        self._items.append(item)
        self._changed.notify()
