"""The topics of one node in a fleet: `skiptrain/v1/<fleet>/<node>/status | model/<run_id> | metrics`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.core.types import NODE_ID, NodeId
from agent.errors import ConfigError

PREFIX = "skiptrain/v1"
RUN_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
"""A run id is one topic level: no slash, no wildcard, no space."""


def no_name(name: str) -> str:
    """Return what to say of a fleet's or a node's name that NODE_ID does not match."""
    return f"{name!r} is no name: use a-z, 0-9 and single hyphens inside, at most 31 characters"


@dataclass(frozen=True, slots=True)
class Topics:
    """Where a node of `fleet` publishes and whom it hears in run `run_id`; a bad id is a ConfigError."""

    fleet: str
    run_id: str

    def __post_init__(self) -> None:
        if not NODE_ID.fullmatch(self.fleet):
            raise ConfigError(f"fleet: {no_name(self.fleet)}")
        if not RUN_ID.fullmatch(self.run_id):
            raise ConfigError(f"run id {self.run_id!r}: use letters, digits, dot, underscore and hyphen, 64 at most")

    def status(self, node: NodeId) -> str:
        """Return the topic of the retained presence of `node`."""
        return f"{self._base(node)}/status"

    def model(self, node: NodeId) -> str:
        """Return the topic of the models of `node` in this run."""
        return f"{self._base(node)}/model/{self.run_id}"

    def metrics(self, node: NodeId) -> str:
        """Return the topic of the metrics of `node`."""
        return f"{self._base(node)}/metrics"

    def every_status(self) -> str:
        """Return the filter that matches the presence of every node of the fleet."""
        return f"{PREFIX}/{self.fleet}/+/status"

    def parse(self, topic: str) -> tuple[str, NodeId] | None:
        """Return (`status` or `model`, node) of a topic of this fleet and run; None for any other text."""
        head = f"{PREFIX}/{self.fleet}/"
        if not topic.startswith(head):
            return None
        node, _, rest = topic[len(head) :].partition("/")
        if not NODE_ID.fullmatch(node):
            return None
        if rest == "status":
            return "status", NodeId(node)
        return ("model", NodeId(node)) if rest == f"model/{self.run_id}" else None

    def _base(self, node: NodeId) -> str:
        if not NODE_ID.fullmatch(node):
            raise ConfigError(f"node id: {no_name(node)}")
        return f"{PREFIX}/{self.fleet}/{node}"
