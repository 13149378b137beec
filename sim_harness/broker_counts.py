"""What a broker counts: the model messages that pass through it, and their payload bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

MODEL_TOPIC: Final = re.compile(r"skiptrain/v1/[^/]+/[^/]+/model/[^/]+")


@dataclass(frozen=True, slots=True)
class BrokerCounts:
    """PUBLISH packets on model topics, and their payload bytes, from clients (`in`) and to clients (`out`)."""

    model_messages_in: int = 0
    model_bytes_in: int = 0
    model_messages_out: int = 0
    model_bytes_out: int = 0

    def received(self, topic: str, payload_bytes: int) -> BrokerCounts:
        """Return these counts with one more PUBLISH from a client, if its topic is a model's."""
        if MODEL_TOPIC.fullmatch(topic) is None:
            return self
        messages, total_bytes = self.model_messages_in + 1, self.model_bytes_in + payload_bytes
        return replace(self, model_messages_in=messages, model_bytes_in=total_bytes)

    def sent(self, topic: str, payload_bytes: int) -> BrokerCounts:
        """Return these counts with one more PUBLISH to a client, if its topic is a model's."""
        if MODEL_TOPIC.fullmatch(topic) is None:
            return self
        messages, total_bytes = self.model_messages_out + 1, self.model_bytes_out + payload_bytes
        return replace(self, model_messages_out=messages, model_bytes_out=total_bytes)
