"""The page that `skiptrain-agent status` and `peers` read: a small JSON file in memory, rewritten whole."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from agent.errors import AgentError

_NAME = "status.json"


class PeerStatus(msgspec.Struct, frozen=True):
    """One peer as the node sees it; ages in seconds at the time of the page."""

    node: str
    online: bool
    neighbour: bool
    ready: bool
    address: str
    sources: dict[str, float]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent is doing."""

    node: str
    fleet: str
    run: str
    pid: int
    phase: str
    round: int
    rounds: int
    decision: str
    trained: int
    connection: str
    peers_online: int
    neighbours: int
    budget_j: float | None
    spent_j: float
    left_j: float | None
    energy_source: str
    energy: str = ""
    """Why nothing can be trained for energy's sake, as a sensor that is gone; empty while it can."""
    expected_j: float | None = None
    """What a training round is believed to cost; None where nothing tells yet."""
    period: str = ""
    credited_j: float = 0.0
    left_rounds: int | None = None
    journal_bytes: int
    disk: str = ""
    """Why the journal cannot be written, and this node does not train; empty while it can."""
    network: dict[str, int]
    """What the transport has counted since the start: messages, bytes, drops, refusals, reconnects."""
    refused: dict[str, int] = {}
    """How many messages of watched peers the agent has refused since its start, by reason; docs/hostile-bytes.md."""
    ended: str
    """Why the agent ended; empty while it runs."""
    peers: tuple[PeerStatus, ...] = ()


def write_status(folder: Path, status: Status) -> None:
    """Replace the page; OSError when the folder does not take it."""
    temporary = folder / f"{_NAME}.tmp"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(status), indent=2))
    temporary.replace(folder / _NAME)


def read_status(folder: Path) -> Status:
    """Return the page of an agent that runs, or that said why it ended; AgentError when neither is so."""
    path = folder / _NAME
    try:
        status = msgspec.json.decode(path.read_bytes(), type=Status)
    except FileNotFoundError:
        raise AgentError(f"{path} is not there: no agent has run with this node.runtime_dir") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise AgentError(f"{path}: cannot be read: {error}") from None
    if not status.ended and not _alive(status.pid):
        raise AgentError(
            f"the agent of {status.node} (process {status.pid}) has gone without a word; it was {status.phase}"
        )
    return status


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
