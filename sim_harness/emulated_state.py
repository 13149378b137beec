"""All that an emulation keeps between two events: the devices, what is to come, and what the network has carried."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from agent.core import effects as fx
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig
from agent.core.types import NodeId, Params, Snapshot
from agent.core.wire import Assembler
from sim_harness.powered import Powered, VirtualClock


@dataclass(slots=True)
class VirtualNode:
    """One device: the machine, which is lost when it is switched off, and the disk, which is not."""

    index: int
    id: NodeId
    config: MachineConfig
    powered: Powered
    snapshot: Snapshot | None = None
    model: Params | None = None
    """The model that was saved last."""
    machine: RoundMachine | None = None
    """None while the device is off."""
    life: int = 0
    absences: int = 0
    """How often it has been gone, or is about to be."""
    watching: frozenset[NodeId] = frozenset()
    ready: str = ""
    armed: float | None = None
    """When the earliest timer of this life goes off."""
    training: fx.StartTraining | None = None
    training_since_s: float = 0.0
    training_s: float = 0.0
    """How long it lasts, to its last local step."""
    assembler: Assembler | None = None
    """What puts messages together; None where models are handed over whole."""
    finished: str = ""
    """Why its run has ended."""


@dataclass(slots=True)
class Traffic:
    """What the network has carried: messages and bytes, from nodes (`in`) and to nodes (`out`)."""

    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0


@dataclass(slots=True)
class State:
    """All of an emulation that a checkpoint must keep, besides what its observer has seen."""

    nodes: list[VirtualNode]
    clock: VirtualClock
    queue: list[tuple[float, int, str, tuple[Any, ...]]] = field(default_factory=list)
    """What is to come: when, in which order, which of an emulator's events, and with what."""
    pushed: int = 0
    waiting: Counter[str] = field(default_factory=Counter)
    """How much of each kind there is in the queue."""
    unfinished: int = 0
    stirred_s: float = 0.0
    """When a node last ended a round or came back, or the network changed."""
    idle: int = 0
    """How many events there were since the last end of a round."""
    changed: set[NodeId] = field(default_factory=set)
    """Nodes that have come, gone, or said something new, and nobody has heard of it yet."""
    traffic: Traffic = field(default_factory=Traffic)

    def at(self, when: float, name: str, *arguments: Any) -> None:
        """Put what is to come into the queue; what comes too late for its time comes now."""
        self.pushed += 1
        self.waiting[name] += 1
        heapq.heappush(self.queue, (max(self.clock.now, when), self.pushed, name, arguments))
