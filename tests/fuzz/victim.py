"""A real node at the end of the wire: what it is sent goes through `Reach.take` into its RoundMachine, all checked."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.budget import Cost, Ledger
from agent.core.round_machine import RoundMachine
from agent.core.round_state import MachineConfig, Phase
from agent.core.types import (
    ModelShape,
    ModelUpdate,
    NodeId,
    Quality,
    RunDescriptor,
    Schedule,
    TopologySpec,
    params_digest,
)
from agent.core.wire import HEADER_BYTES, LARGEST, PARTIAL_PER_SENDER, Format
from agent.network.transport import ModelChunk, Transport
from agent.reach import Reach
from tests.core.wire_bytes import AT
from tests.device_rig import device_config
from tests.fuzz.payloads import Scene

LOOKAHEAD = 2
SENDERS = tuple(NodeId(name) for name in ("b", "c", "d", "e", "f"))
ME = NodeId("a")
RUN = RunDescriptor(
    run_id="toy",
    seed=7,
    model=ModelShape("toy", (1, 1, 1), 2),
    schedule=Schedule(2, 1, 40),
    policy="d-psgd",
    topology=TopologySpec("complete"),
    roster=(ME, *SENDERS),
    start_timeout_s=30.0,
    round_deadline_s=2.0,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's size, and into how many chunks it is cut."""

    n_params: int
    chunks: int

    @property
    def chunk_bytes(self) -> int:
        """The longest chunk, header included."""
        return HEADER_BYTES + -(-4 * self.n_params // self.chunks)


SHAPES = (Shape(60, 1), Shape(250, 3), Shape(1, 1), Shape(33, 12), Shape(4_000, 2))
"""One chunk, a few, the smallest model, chunks smaller than their headers, and a model that is larger than all that."""


class Victim:
    """One node among five neighbours; it trains and goes through its rounds for as long as it is sent anything."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.form = Format(RUN.digest(), b"toyshape", shape.n_params)
        self.outcomes: Counter[str] = Counter()
        """What became of each message: `a model` or `a part` of one taken, or the reason of its refusal."""
        self.runs = 0
        self._now = 0.0
        self.begin()

    def begin(self) -> None:
        """Start a run from the beginning with all neighbours there; in every other one they are not ready."""
        self.runs += 1
        config = device_config(Path("nowhere"), me=ME, roster=RUN.roster)
        self.reach = Reach(config, self.form, lambda _item: True, no_transport)
        start = np.zeros(self.shape.n_params, np.float32)
        self.machine = RoundMachine(MachineConfig(ME, RUN, Cost(1_000, 1_000)), start, Ledger(None))
        self.handle(ev.Started())
        assert self.machine.roster is not None
        ready = self.machine.roster.digest().hex() if self.runs % 2 else ""
        self._refused: dict[str, int] = {}
        self.handle(ev.PeersChanged(dict.fromkeys(SENDERS, ready)))

    @property
    def scene(self) -> Scene:
        """What honest neighbours would share now; who waits is to find a run that is going."""
        roster = self.machine.roster
        assert roster is not None
        round_ = 5 if self.machine.phase is Phase.WAITING else self.machine.round
        size = self.shape.chunk_bytes
        return Scene(self.form, SENDERS, roster.digest(), roster.epoch, len(SENDERS), round_, size)

    def take(self, sender: NodeId, message: bytes) -> str:
        """Take one message as the daemon does; return what became of it, after checking everything there is."""
        self._now += 0.001
        (event,) = self.reach.take(ModelChunk(sender, message), self._now)
        if isinstance(event, ev.UpdateReceived):
            self.check_update(sender, message, event.update)
        self.handle(event)
        self.check_memory()
        outcome = self._newly_refused() or ("a part" if isinstance(event, ev.RoundAnnounced) else "a model")
        self.outcomes[outcome] += 1
        if self.machine.phase is Phase.DONE:
            self.begin()
        return outcome

    def _newly_refused(self) -> str:
        """Return the one reason that was counted since the last call, or nothing."""
        before, self._refused = self._refused, self.machine.refusals
        more = [name for name, count in self._refused.items() for _ in range(count - before.get(name, 0))]
        assert len(more) <= 1
        return "".join(more)

    def go_on(self, rng: Random) -> None:
        """End the training under way, if any, sooner or later."""
        if self.machine.phase is Phase.TRAINING and rng.random() < 0.1:
            params = np.full(self.shape.n_params, rng.random(), np.float32)
            self.handle(ev.TrainingFinished(self.machine.round, params, 0.5, 10, Quality.REPLAYED))

    def handle(self, event: ev.Event) -> None:
        """Hand in one event, and the deadlines that have passed by then."""
        self._do(self.machine.handle(event, self._now))
        while self.machine.deadline is not None and self.machine.deadline <= self._now:
            if self.machine.phase is Phase.TRAINING:
                break
            self._do(self.machine.handle(ev.DeadlineReached(), self._now))

    def _do(self, effects: Sequence[fx.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fx.WatchNeighbours):
                self.reach.watch(effect)
            if isinstance(effect, fx.AppendRecord):
                assert np.isfinite(self.machine.params).all()
                assert {node for node, _, _ in effect.record.mixed} <= {ME, *SENDERS}

    def check_memory(self) -> None:
        """Hold what neighbours made this node keep against its bounds."""
        model_bytes = 4 * self.shape.n_params
        assert self.reach._assembler.pending_bytes <= len(SENDERS) * PARTIAL_PER_SENDER * model_bytes
        inbox = self.machine.around.inbox
        assert len(inbox) <= len(SENDERS) * (LOOKAHEAD + 1)

    def check_update(self, sender: NodeId, message: bytes, update: ModelUpdate) -> None:
        """Hold an accepted model against the bytes of its last chunk, read here a second time."""

        def field(name: str, size: int) -> bytes:
            return message[AT[name] : AT[name] + size]

        def number(name: str) -> int:
            (value,) = struct.unpack("<I", field(name, 4))
            return int(value)

        assert sender in SENDERS
        assert field("sender", 32) == sender.encode().ljust(32, b"\0")
        assert (field("magic", 4), field("run", 16), field("schema", 8)) == (b"SKTR", self.form.run, self.form.schema)
        assert (field("version", 1), field("codec", 1), message[AT["flags"] + 1]) == (b"\1", b"\0", 0)
        assert number("n_params") == self.form.n_params
        assert (update.sender, update.round, update.epoch) == (sender, number("round"), number("epoch"))
        assert (update.degree, update.trained) == (number("degree"), number("trained"))
        assert (update.roster, update.digest) == (field("roster", 8), field("digest", 8).hex())
        assert update.params.shape == (self.form.n_params,)
        assert update.params.dtype == np.float32
        assert params_digest(update.params) == update.digest
        assert (np.abs(update.params) <= LARGEST).all()


def no_transport(host: str, port: int) -> Transport:
    """Fail: nobody connects anywhere here."""
    raise AssertionError(f"a connection to {host}:{port}")
