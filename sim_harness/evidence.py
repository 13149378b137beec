"""The evidence of a run: what the journals of its nodes hold, as rounds.csv, evaluation.csv and summary.json."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.core.mixing import adopt
from agent.core.types import NodeId, Params, RoundRecord, Snapshot
from agent.errors import AgentError
from agent.journal import Journal, read_evaluations, read_records
from agent.learning.data import Dataset
from agent.learning.trainer import TorchTrainer
from sim_harness.broker_counts import BrokerCounts
from sim_harness.fleet import FleetData, NodeFiles
from sim_harness.scenario import Scenario

ROUND_COLUMNS = (
    "node",
    "round",
    "kind",
    "decision",
    "probability",
    "reason",
    "energy_j",
    "energy_quality",
    "loss",
    "peers_expected",
    "peers_received",
    "rejected",
    "digest_published",
    "mixed",
    "train_s",
    "collect_s",
    "error",
    "bound_j",
    "coverage",
    "share_j",
    "idle_j",
)
EVALUATION_COLUMNS = ("round", "node", "accuracy", "own_accuracy", "loss")


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """What one node left behind."""

    node: NodeId
    records: tuple[RoundRecord, ...]
    snapshot: Snapshot
    params: Params


def collect(nodes: Iterable[NodeFiles]) -> list[NodeEvidence]:
    """Read the journals of nodes that have ended; AgentError names one that left no model, or not all of its rounds."""
    found = []
    for files in nodes:
        journal = Journal(files.state)
        recovered = journal.recover()
        journal.close()
        if recovered.snapshot is None or recovered.model is None:
            raise AgentError(f"{files.node} left no finished model; its log is {files.log}")
        records = tuple(read_records(files.state))
        rotated = (files.state / "rounds.jsonl.1").exists()
        if rotated and records and records[0].round > recovered.snapshot.first_round:
            raise AgentError(
                f"{files.node}: its journal has rotated the rounds before {records[0].round} out, so rounds.csv would "
                f"lack them; run the scenario with fewer rounds; what is left is in {files.state}"
            )
        found.append(NodeEvidence(files.node, records, recovered.snapshot, recovered.model))
    return found


def write_rounds(path: Path, evidence: Sequence[NodeEvidence]) -> None:
    """Write rounds.csv: a row per node and round, in that order."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(ROUND_COLUMNS)
        for node in evidence:
            writer.writerows(_round_row(record) for record in node.records)


def _round_row(record: RoundRecord) -> tuple[object, ...]:
    decision = record.decision
    return (
        record.node,
        record.round,
        record.kind.value,
        "train" if decision.train else "skip",
        f"{decision.probability:.6f}",
        decision.reason,
        f"{record.energy_uj / 1e6:.6f}",
        record.energy_quality.value,
        "" if record.loss is None else f"{record.loss:.6f}",
        record.peers_expected,
        record.peers_received,
        record.rejected,
        record.digest_published,
        " ".join(f"{node}:{digest}:{weight:.9f}" for node, digest, weight in record.mixed),
        f"{record.train_s:.4f}",
        f"{record.collect_s:.4f}",
        record.error,
        "" if record.window is None else f"{record.window.bound_uj / 1e6:.6f}",
        "" if record.window is None else f"{record.window.coverage:.6f}",
        _joules(record.share_uj),
        _joules(record.idle_uj),
    )


def _joules(amount_uj: int | None) -> str:
    """Return joules, or nothing where they were not measured."""
    return "" if amount_uj is None else f"{amount_uj / 1e6:.6f}"


def write_evaluations(path: Path, nodes: Iterable[NodeFiles]) -> None:
    """Write evaluation.csv: a row per evaluation, by round and node; empty fields where there is no such test set."""
    rows = [row for files in nodes for row in read_evaluations(files.state)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(EVALUATION_COLUMNS)
        for row in sorted(rows, key=lambda row: (row.round, row.node)):
            numbers = (row.accuracy, row.own_accuracy, row.loss)
            writer.writerow([row.round, row.node, *("" if number is None else f"{number:.6f}" for number in numbers)])


def final_accuracy(scenario: Scenario, data: FleetData, models: Sequence[Params]) -> tuple[list[float], float]:
    """Test every final model, and the average of all of them, on the whole common test set: top-1, in [0, 1]."""
    nothing = Dataset(data.test.x[:0], data.test.y[:0], "none")
    trainer = TorchTrainer(data.model, data.test, nothing, data.test, seed=scenario.seed)
    average = adopt({NodeId(f"{i:06d}"): params for i, params in enumerate(models)})
    return [_accuracy(trainer, params) for params in models], _accuracy(trainer, average)


def _accuracy(trainer: TorchTrainer, params: Params) -> float:
    result = trainer.evaluate(params, 0)
    if result.accuracy is None:
        raise AgentError("the common test set is empty: no accuracy can be told; check data.path")
    return result.accuracy


def params_sha256(models: Iterable[Params]) -> str:
    """Return the SHA-256 over all parameters, each node's as little-endian float32, in node order."""
    digest = hashlib.sha256()
    for params in models:
        digest.update(np.ascontiguousarray(params, dtype="<f4").tobytes())
    return digest.hexdigest()


def summary(  # noqa: PLR0917
    scenario: Scenario,
    evidence: Sequence[NodeEvidence],
    accuracy: tuple[list[float], float],
    counts: BrokerCounts | None,
    model_chunks: int,
    wall_s: float,
    phase_s: dict[str, float],
) -> dict[str, Any]:
    """Return summary.json; docs/files.md says what each key means."""
    per_node, consensus = accuracy
    records = [record for node in evidence for record in node.records]
    expected, mixed = sum(r.peers_expected for r in records), sum(r.peers_received for r in records)
    charged = [node.snapshot.ledger.charged_uj for node in evidence]
    limits = [scenario.limit_uj(i) for i in range(len(evidence))]
    overspent = [
        node.node
        for node, limit in zip(evidence, limits, strict=True)
        if limit is not None and node.snapshot.ledger.overspent_uj
    ]
    trained = [node.snapshot.ledger.windows for node in evidence]
    d_psgd_uj = sum(scenario.rounds * scenario.device(i).cost_uj for i in range(len(evidence)))
    topology = scenario.topology_spec()
    return {
        "scenario": scenario.name,
        "engine": scenario.engine.kind,
        "nodes": scenario.nodes,
        "rounds": scenario.rounds,
        "seed": scenario.seed,
        "policy": scenario.policy.name,
        "topology": {"kind": topology.kind, "degree": topology.degree},
        "accuracy": {
            "mean": float(np.mean(per_node)),
            "std": float(np.std(per_node)),
            "min": min(per_node),
            "max": max(per_node),
            "consensus": consensus,
        },
        "energy_j": {
            "train": sum(node.snapshot.ledger.charged_uj - node.snapshot.ledger.background_uj for node in evidence)
            / 1e6,
            "share": _sum_j(record.share_uj for record in records),
            "idle": _sum_j(record.idle_uj for record in records),
            "total": sum(charged) / 1e6,
            "d_psgd_equivalent": d_psgd_uj / 1e6,
        },
        "training_rounds": {"total": sum(trained), "max": max(trained)},
        "budget": {
            "limit_j": None if None in limits else sum(limit for limit in limits if limit is not None) / 1e6,
            "spent_j": sum(charged) / 1e6,
            "overspent_nodes": overspent,
        },
        "messages": {
            "delivered": mixed if counts is None else counts.model_messages_out // model_chunks,
            "missing": expected - mixed,
            "rejected": sum(record.rejected for record in records),
            "expected": expected,
            "mixed": mixed,
            "counted_by": "agents" if counts is None else "broker",
        },
        "bytes": {
            "published": None if counts is None else counts.model_bytes_in,
            "delivered": None if counts is None else counts.model_bytes_out,
        },
        "wall_s": wall_s,
        "phase_s": phase_s,
        "params_sha256": params_sha256(node.params for node in evidence),
        "per_node": [
            {
                "node": node.node,
                "device": scenario.device(i).device,
                "limit_j": None if (limit := limits[i]) is None else limit / 1e6,
                "spent_j": charged[i] / 1e6,
                "training_rounds": trained[i],
                "accuracy": per_node[i],
            }
            for i, node in enumerate(evidence)
        ],
    }


def _sum_j(amounts_uj: Iterable[int | None]) -> float | None:
    """Return the sum in joules; None where nothing was measured."""
    known = [amount for amount in amounts_uj if amount is not None]
    return sum(known) / 1e6 if known else None


def write_summary(path: Path, values: dict[str, Any]) -> None:
    """Write summary.json, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
