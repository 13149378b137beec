"""Carries models, and news of who is there, between emulated machines, as the network model lets them through."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent.core import events as ev
from agent.core.round_state import Phase
from agent.core.topology import neighbours
from agent.core.types import ModelUpdate, NodeId
from agent.core.wire import HEADER_BYTES, Assembler, Format, Refused, chunk_count, encode
from sim_harness.arithmetic import Deferred
from sim_harness.emulated_state import State, VirtualNode
from sim_harness.network_model import NetworkModel, Sent

_BYTES_A_PARAMETER = 4


class Carrier:
    """The network between all nodes of a fleet."""

    def __init__(  # noqa: PLR0917
        self,
        state: State,
        network: NetworkModel,
        arithmetic: Deferred,
        step: Callable[[VirtualNode, ev.Event], None],
        n_params: int,
        form: Format | None,
    ) -> None:
        """Take the fleet, and what hands an event to a machine; with `form`, models travel as bytes."""
        self._state, self._network, self._arithmetic, self._step, self._form = state, network, arithmetic, step, form
        self._by_id = {node.id: node for node in state.nodes}
        run = state.nodes[0].config.run
        graph = neighbours(run.topology, run.roster, run.seed)
        self._edges = [[self._by_id[other] for other in sorted(graph[node.id])] for node in state.nodes]
        self._chunks = chunk_count(n_params)
        self._message_bytes = _BYTES_A_PARAMETER * n_params + self._chunks * HEADER_BYTES

    def send(self, sender: VirtualNode, update: ModelUpdate) -> None:
        """Put a model on its way to everybody who watches its sender, all of them together where it takes as long."""
        now, network = self._state.clock.now, self._network
        together: dict[Sent, list[int]] = {}
        turn = 0
        for node in self._edges[sender.index]:
            if sender.id in node.watching and network.reaches(sender.index, node.index, now):
                turn += 1
                size = self._message_bytes
                sent = network.send(sender.index, node.index, turn, update.round, self._chunks, size)
                together.setdefault(sent, []).append(node.index)
        messages = self._encoded(update)
        for sent, indices in together.items():
            arriving = tuple(messages[i] for i in sent.arriving) if messages else len(sent.arriving)
            whole = None if messages else update
            self._state.at(now + sent.delay_s, "deliver", tuple(indices), whole, sender.id, arriving)
        self._state.traffic.messages_in += self._chunks
        self._state.traffic.bytes_in += self._message_bytes

    def _encoded(self, update: ModelUpdate) -> list[bytes]:
        """Return a model's messages; nothing where it travels whole."""
        if self._form is None:
            return []
        self._arithmetic.flush()
        return encode(update, self._form)

    def deliver(
        self, indices: tuple[int, ...], update: ModelUpdate | None, sender: NodeId, arriving: int | tuple[bytes, ...]
    ) -> None:
        """Hand over a model, as a whole or as messages, some of which may be missing."""
        now, nodes, traffic = self._state.clock.now, self._state.nodes, self._state.traffic
        place, count = self._by_id[sender].index, arriving if isinstance(arriving, int) else len(arriving)
        for index in indices:
            node = nodes[index]
            if count and sender in node.watching and self._network.reaches(place, index, now):
                traffic.messages_out += count
                traffic.bytes_out += self._message_bytes * count // self._chunks
                for event in self._received(node, update, sender, arriving):
                    self._step(node, event)

    def _received(
        self, node: VirtualNode, update: ModelUpdate | None, sender: NodeId, arriving: int | tuple[bytes, ...]
    ) -> Iterator[ev.Event]:
        """Yield what a machine must hear; of a model that is not whole, which round its sender is in."""
        if update is not None:
            yield ev.UpdateReceived(update) if arriving == self._chunks else ev.RoundAnnounced(sender, update.round)
        elif node.assembler is not None and not isinstance(arriving, int):
            yield from (_assembled(node.assembler, sender, message) for message in arriving)

    # --- presence

    def network_changed(self) -> None:
        """Have everybody see anew whom the network lets it reach."""
        self._state.stirred_s = self._state.clock.now
        for node in self._state.nodes:
            self.presence_changed(node)

    def presence_changed(self, node: VirtualNode) -> None:
        """Tell others a moment later that a node has come, gone, or says something else."""
        if not self._state.changed:
            self._state.at(self._state.clock.now + self._network.presence_s, "tell_presence")
        self._state.changed.add(node.id)

    def tell_presence(self) -> None:
        """Tell those whom it concerns what has changed since the last time."""
        changed, self._state.changed = self._state.changed, set()
        nodes, listening = self._state.nodes, set()
        for name in changed:
            listening.add(self._by_id[name].index)
            listening.update(node.index for node in self._edges[self._by_id[name].index])
        waiting = {node.index for node in nodes if node.machine is not None and node.machine.phase is Phase.WAITING}
        here = {node.id: node.ready for node in nodes if node.machine is not None} if waiting else {}
        for index in sorted(listening | waiting):
            node = nodes[index]
            if node.machine is not None:
                live = self._seen_by(node, here if index in waiting else None)
                if live is not node.machine.around.live and live != node.machine.around.live:
                    self._step(node, ev.PeersChanged(live))

    def _seen_by(self, node: VirtualNode, here: dict[NodeId, str] | None) -> dict[NodeId, str]:
        """Return who a node can reach: all of the fleet while it waits for its run, its neighbours from then on.

        A machine asks for no more, and telling everybody of everybody all along would take the square of the fleet's
        size. One mapping serves all who wait; that a node finds itself in it does no harm, unless nobody else is there.
        """
        now, reaches = self._state.clock.now, self._network.reaches
        if here is None:
            known = {other.id: other.ready for other in self._edges[node.index] if other.machine is not None}
        else:
            known = here if len(here) > 1 else {}
        if not self._network.parted(now):
            return known
        places = ((self._by_id[name].index, name) for name in known if name != node.id)
        return {name: known[name] for place, name in places if reaches(place, node.index, now)}


def _assembled(assembler: Assembler, sender: NodeId, message: bytes) -> ev.Event:
    """Return what one message is to a machine."""
    try:
        header, whole = assembler.add(sender, message)
    except Refused as refusal:
        return ev.UpdateRejected(refusal.reason)
    return ev.UpdateReceived(whole) if whole else ev.RoundAnnounced(sender, header.round)
