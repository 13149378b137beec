"""`skiptrain-agent energy audit`: what a device's journal says of its joules, taken again from the beginning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.audit import Audit, Terms, audit
from agent.config import AgentConfig
from agent.core.budget import Ledger
from agent.core.costs import CostHistory
from agent.energy.recording import known_cost, open_recording
from agent.energy.trace import open_trace
from agent.errors import JournalError
from agent.journal import read_records, read_snapshot

SHOWN = 20
"""Findings that are printed; the JSON has all of them."""


def audit_journal(config: AgentConfig) -> tuple[Audit, Ledger]:
    """Audit the journal in node.state_dir; also while its agent runs. JournalError where there is nothing to audit."""
    folder = Path(config.node.state_dir)
    records = read_records(folder)  # before the state: that must not be older than they are
    snapshot = read_snapshot(folder)
    if snapshot is None:
        raise JournalError(f"{folder}: no agent has kept a journal there; check --config and node.state_dir")
    return audit(records, _terms(config), snapshot), snapshot.ledger


def _terms(config: AgentConfig) -> Terms:
    """Return what the configuration says of the run and of a round's cost; no sensor is looked for."""
    settings, run, node = config.energy_settings(), config.descriptor(), config.node_id
    if config.is_relay or settings.source == "trace":
        prior = None if config.is_relay else open_trace(settings).prior
        return Terms(run, node, prior, learns=False)
    if settings.source == "recording":
        meter = open_recording(settings)
        return Terms(run, node, meter.prior, history=meter.history)
    prior = None if settings.round_j is None else known_cost(settings.round_j)
    return Terms(run, node, prior, history=CostHistory())


def as_json(config: AgentConfig, found: Audit, ledger: Ledger) -> dict[str, Any]:
    """Return all of it for programs; amounts in microjoules."""
    return {"ok": not found.findings, "node": config.node.id, "run": config.run.id, **asdict(found), "ledger": ledger}


def lines(config: AgentConfig, found: Audit, ledger: Ledger) -> Iterator[str]:
    """Yield it for people."""
    yield f"{config.node.id}, run {config.run.id}: {found.rounds} rounds in the journal, {found.trained} to train in"
    yield (
        f"  decisions   {found.taken_again} taken again, {found.undrawn} that came too late to be taken, "
        f"{found.unexplained} of another run or release"
    )
    yield f"  training    {_j(found.train_uj)} J, of which the meter may be wrong by {_j(found.bound_uj)} J"
    yield f"  besides     {_j(found.share_uj)} J for sharing, {_j(found.idle_uj)} J in no round"
    yield f"  outside     {_j(found.outside_uj)} J charged outside of training"
    if ledger.forfeited_uj:
        yield f"  forfeited   {_j(ledger.forfeited_uj)} J of trainings that were interrupted"
    limit = "no limit" if ledger.limit_uj is None else f"a budget of {_j(ledger.limit_uj)} J"
    period = f", period {ledger.period}" if ledger.period else ""
    yield (
        f"  ledger      {_j(ledger.charged_uj)} J charged, {_j(ledger.credited_uj)} J given back, {limit}{period}; "
        f"over by {_j(found.overspent_uj)} J at most"
    )
    for finding in found.findings[:SHOWN]:
        yield f"  WRONG       round {finding.round}: {finding.what}"
    if len(found.findings) > SHOWN:
        yield f"  WRONG       and {len(found.findings) - SHOWN} more; --json has all"
    if found.missing:
        yield f"  missing     {found.missing} rounds have no record: a power cut may take the last lines"
    if not found.findings:
        yield f"  audit       {_verdict(found)}"


def _verdict(found: Audit) -> str:
    """Return what was shown where nothing is wrong."""
    if found.unexplained:
        return (
            f"{found.unexplained} of {found.rounds} decisions could not be taken again, only their joules were added "
            "up: --config must be that of the run"
        )
    if not found.taken_again:
        return "no decision could be taken again, only joules were added up"
    if found.missing:
        return "every decision in it follows from the ledger; what the missing rounds spent is in the ledger alone"
    return "every decision follows from the ledger, and every joule is in it"


def _j(amount_uj: int) -> str:
    return f"{amount_uj / 1e6:,.3f}"
