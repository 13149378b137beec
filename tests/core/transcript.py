"""Events and effects as short lines of text, for transcripts that a person reads."""

from __future__ import annotations

from agent.core import effects as fx
from agent.core import events as ev
from agent.core.types import LOOKING, RoundRecord, Snapshot

_MARKS = {"": "", LOOKING: "?"}
_WORDS = {"": "", LOOKING: ", looking"}


def describe_event(event: ev.Event) -> str:
    """Return one line that says what happened."""
    match event:
        case ev.PeersChanged(live):
            who = " ".join(f"{node}{_MARKS.get(ready, '*')}" for node, ready in sorted(live.items()))
            detail = who or "nobody"
        case ev.RosterChanged(roster):
            detail = f"epoch {roster.epoch} from round {roster.from_round}: {' '.join(roster.members)}"
        case ev.TrainingFinished(round=round_, energy_uj=energy):
            detail = f"round {round_}, {energy} uJ"
        case ev.TrainingFailed(round=round_, reason=reason, energy_uj=energy):
            detail = f"round {round_}, {energy} uJ: {reason}"
        case ev.UpdateReceived(update):
            detail = f"{update.sender} round {update.round}"
        case ev.RoundAnnounced(sender, round_):
            detail = f"{sender} round {round_}"
        case ev.UpdateRejected(reason) | ev.StopRequested(reason):
            detail = reason
        case _:
            detail = ""
    return f"{type(event).__name__} {detail}".rstrip()


def describe_effect(effect: fx.Effect) -> str:
    """Return one line that says what is to be done."""
    match effect:
        case fx.SaveState(snapshot):
            detail = _snapshot(snapshot)
        case fx.WatchNeighbours(peers, ready):
            detail = f"{' '.join(sorted(peers)) or 'nobody'}{_WORDS.get(ready, ', ready')}"
        case fx.StopTraining(round_, at_once):
            detail = f"round {round_}{', at once' if at_once else ''}"
        case fx.PublishUpdate(update):
            detail = f"round {update.round} epoch {update.epoch} degree {update.degree} trained {update.trained}"
        case fx.AppendRecord(record):
            detail = _record(record)
        case fx.Notify(text) | fx.RunFinished(text):
            detail = text
        case fx.SaveModel(round=round_) | fx.StartTraining(round=round_) | fx.Evaluate(round=round_):
            detail = f"round {round_}"
    return f"{type(effect).__name__} {detail}"


def _snapshot(snapshot: Snapshot) -> str:
    ledger, decision = snapshot.ledger, snapshot.decision
    reserved = f" +{ledger.reservation.upper_uj} reserved" if ledger.reservation else ""
    limit = "no limit" if ledger.limit_uj is None else f"{ledger.limit_uj}"
    why = f", {decision.reason} (p {decision.probability:.3f}, draw {decision.draw:.3f})" if decision else ""
    over = ", finished" if snapshot.finished else ""
    return f"round {snapshot.round}{why}; charged {ledger.charged_uj}{reserved} of {limit} uJ{over}"


def _record(record: RoundRecord) -> str:
    weights = " ".join(f"{node} {weight:.3f}" for node, _, weight in record.mixed) or "nothing"
    error = f"; {record.error}" if record.error else ""
    return (
        f"round {record.round} {record.kind.value}, {record.energy_uj} uJ {record.energy_quality.value}, "
        f"{record.peers_received} of {record.peers_expected} peers, {record.rejected} rejected; mixed {weights}{error}"
    )
