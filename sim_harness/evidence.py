"""The evidence of a run: what the journals of its nodes hold, as rounds.csv, evaluation.csv and summary.json."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agent.core.budget import Ledger
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
class NodeEnd:
    """What a node has come to."""

    node: NodeId
    ledger: Ledger
    params: Params


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """What one node left behind."""

    node: NodeId
    records: tuple[RoundRecord, ...]
    snapshot: Snapshot
    params: Params

    @property
    def end(self) -> NodeEnd:
        """What it has come to."""
        return NodeEnd(self.node, self.snapshot.ledger, self.params)


@dataclass(slots=True)
class Totals:
    """What the records of all nodes add up to."""

    expected: int = 0
    mixed: int = 0
    rejected: int = 0
    failed: int = 0
    """Trainings that gave no model."""
    ended: dict[NodeId, int] = field(default_factory=dict)
    """Rounds of each node that have ended; a node without any is not in it."""
    share_uj: int | None = None
    """None: not measured."""
    idle_uj: int | None = None

    def add(self, record: RoundRecord) -> None:
        """Take one more record."""
        self.expected += record.peers_expected
        self.mixed += record.peers_received
        self.rejected += record.rejected
        self.failed += record.decision.train and record.loss is None and bool(record.error)
        self.ended[record.node] = self.ended.get(record.node, 0) + 1
        self.share_uj = _plus(self.share_uj, record.share_uj)
        self.idle_uj = _plus(self.idle_uj, record.idle_uj)


@dataclass(frozen=True, slots=True)
class Traffic:
    """The models that passed between the nodes; None where nobody counted."""

    delivered: int
    published_bytes: int | None
    delivered_bytes: int | None
    counted_by: str


def _plus(total: int | None, amount: int | None) -> int | None:
    return total if amount is None else (total or 0) + amount


def counted(counts: BrokerCounts | None, mixed: int, model_chunks: int) -> Traffic:
    """Return what a broker counted; without one, what the agents did: the models that they mixed."""
    if counts is None:
        return Traffic(mixed, None, None, "agents")
    return Traffic(counts.model_messages_out // model_chunks, counts.model_bytes_in, counts.model_bytes_out, "broker")


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
            writer.writerows(round_row(record) for record in node.records)


def round_row(record: RoundRecord) -> tuple[object, ...]:
    """Return a record as a row of rounds.csv."""
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
        str(record.digest_published),
        " ".join(f"{node}:{digest!s}:{weight:.9f}" for node, digest, weight in record.mixed),
        f"{record.train_s:.4f}",
        f"{record.collect_s:.4f}",
        " ".join(record.error.split()),
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
            writer.writerow(evaluation_row(row.round, row.node, (row.accuracy, row.own_accuracy, row.loss)))


def evaluation_row(round_: int, node: str, numbers: Iterable[float | None]) -> list[object]:
    """Return accuracy, own accuracy and loss as a row of evaluation.csv."""
    return [round_, node, *decimals(numbers)]


def decimals(numbers: Iterable[float | None]) -> list[str]:
    """Return numbers as the files hold them, and nothing where there is none."""
    return ["" if number is None else f"{number:.6f}" for number in numbers]


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
        digest.update(np.ascontiguousarray(params, dtype="<f4").data)
    return digest.hexdigest()


def summary(  # noqa: PLR0917
    scenario: Scenario,
    ends: Sequence[NodeEnd],
    totals: Totals,
    accuracy: tuple[list[float], float],
    traffic: Traffic,
    wall_s: float,
    phase_s: dict[str, float],
    digest: str,
) -> dict[str, Any]:
    """Return summary.json; docs/files.md says what each key means. `digest` is `params_sha256` of the ends' models."""
    per_node, consensus = accuracy
    ledgers = [end.ledger for end in ends]
    charged = [ledger.charged_uj for ledger in ledgers]
    limits = [scenario.limit_uj(i) for i in range(len(ends))]
    overspent = [
        end.node for end, limit in zip(ends, limits, strict=True) if limit is not None and end.ledger.overspent_uj
    ]
    trained = [ledger.windows for ledger in ledgers]
    d_psgd_uj = sum(totals.ended.get(end.node, 0) * scenario.device(i).cost_uj for i, end in enumerate(ends))
    topology = scenario.topology_spec()
    return {
        "scenario": scenario.name,
        "engine": scenario.engine.kind,
        "nodes": scenario.nodes,
        "rounds": scenario.rounds,
        "seed": scenario.seed,
        "rounds_ended": sum(totals.ended.values()),
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
            "train": sum(ledger.charged_uj - ledger.background_uj for ledger in ledgers) / 1e6,
            "share": _as_j(totals.share_uj),
            "idle": _as_j(totals.idle_uj),
            "total": sum(charged) / 1e6,
            "d_psgd_equivalent": d_psgd_uj / 1e6,
        },
        "training_rounds": {"total": sum(trained), "max": max(trained), "failed": totals.failed},
        "budget": {
            "limit_j": None if None in limits else sum(limit for limit in limits if limit is not None) / 1e6,
            "spent_j": sum(charged) / 1e6,
            "overspent_nodes": overspent,
        },
        "messages": {
            "delivered": traffic.delivered,
            "missing": totals.expected - totals.mixed,
            "rejected": totals.rejected,
            "expected": totals.expected,
            "mixed": totals.mixed,
            "counted_by": traffic.counted_by,
        },
        "bytes": {"published": traffic.published_bytes, "delivered": traffic.delivered_bytes},
        "wall_s": wall_s,
        "phase_s": phase_s,
        "params_sha256": digest,
        "per_node": [
            {
                "node": end.node,
                "device": scenario.device(i).device,
                "limit_j": None if (limit := limits[i]) is None else limit / 1e6,
                "spent_j": charged[i] / 1e6,
                "credited_j": end.ledger.credited_uj / 1e6,
                "training_rounds": trained[i],
                "accuracy": per_node[i],
            }
            for i, end in enumerate(ends)
        ],
    }


def _as_j(amount_uj: int | None) -> float | None:
    return None if amount_uj is None else amount_uj / 1e6


def write_summary(path: Path, values: dict[str, Any]) -> None:
    """Write summary.json, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
