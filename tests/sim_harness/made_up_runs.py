"""Finished runs made up from a scenario: every node trains in every training round, and learns a little by it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.core.types import RoundKind
from sim_harness.evidence import EVALUATION_COLUMNS, ROUND_COLUMNS
from sim_harness.scenario import Scenario, dump_scenario, load_scenario

CONSENSUS_COLUMNS = ("round", "accuracy", "loss", "distance_rms")


def scenario_of(*settings: str) -> Scenario:
    """Return a small scenario: 4 nodes of 4 types, SkipTrain (2, 1), 12 rounds, and the settings given."""
    small = ("nodes=4", "rounds=12", "topology.degree=2", "policy.name=skiptrain")
    return load_scenario("demo", [*small, *settings])


def write_run(folder: Path, scenario: Scenario, *, accuracy: float = 0.9, consensus: bool = False) -> dict[str, Any]:
    """Write the files of a run, and return its summary; node i ends at `accuracy` less i hundredths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scenario.yaml").write_text(dump_scenario(scenario), encoding="utf-8")
    schedule, names = scenario.schedule(), scenario.node_ids()
    training = [schedule.kind(round_) is RoundKind.TRAINING for round_ in range(scenario.rounds)]
    costs_j = [scenario.device(i).cost_uj / 1e6 for i in range(len(names))]
    rounds: list[dict[str, object]] = [
        {
            **dict.fromkeys(ROUND_COLUMNS, ""),
            "node": name,
            "round": round_,
            "kind": "training" if trains else "synchronisation",
            "decision": "train" if trains else "skip",
            "energy_j": f"{cost_j if trains else 0:.6f}",
            "peers_expected": 2,
            "peers_received": 2,
        }
        for name, cost_j in zip(names, costs_j, strict=True)
        for round_, trains in enumerate(training)
    ]
    _write(folder / "rounds.csv", ROUND_COLUMNS, rounds)
    last = [accuracy - i / 100 for i in range(len(names))]
    every = scenario.evaluation.every
    tested = [round_ for round_ in range(scenario.rounds) if every and (round_ + 1) % every == 0]
    evaluations = [
        {"round": round_, "node": name, "accuracy": f"{final * (round_ + 1) / scenario.rounds:.6f}"}
        for round_ in tested
        for name, final in zip(names, last, strict=True)
    ]
    _write(folder / "evaluation.csv", EVALUATION_COLUMNS, evaluations)
    if consensus:
        rows = [{"round": r, "accuracy": accuracy, "loss": 0.5, "distance_rms": 10.0 / (r + 1)} for r in tested]
        _write(folder / "consensus.csv", CONSENSUS_COLUMNS, rows)
    values = _summary(scenario, last, costs_j, sum(training))
    (folder / "summary.json").write_text(json.dumps(values), encoding="utf-8")
    return values


def _summary(scenario: Scenario, last: list[float], costs_j: list[float], trained: int) -> dict[str, Any]:
    nodes, topology, models = scenario.nodes, scenario.topology_spec(), 2 * scenario.nodes * scenario.rounds
    train_j = trained * sum(costs_j)
    return {
        "scenario": scenario.name,
        "nodes": nodes,
        "rounds": scenario.rounds,
        "seed": scenario.seed,
        "policy": scenario.policy.name,
        "topology": {"kind": topology.kind, "degree": topology.degree},
        "accuracy": {
            "mean": float(np.mean(last)),
            "std": float(np.std(last)),
            "min": min(last),
            "max": max(last),
            "consensus": max(last),
        },
        "energy_j": {"train": train_j, "d_psgd_equivalent": scenario.rounds * sum(costs_j)},
        "training_rounds": {"total": nodes * trained, "max": trained},
        "budget": {"limit_j": None, "spent_j": train_j, "overspent_nodes": []},
        "messages": {"delivered": models, "missing": 0, "rejected": 0, "expected": models, "mixed": models},
        "bytes": {"published": None, "delivered": 1_000_000},
        "per_node": [
            {
                "node": name,
                "device": scenario.device(i).device,
                "training_rounds": trained,
                "accuracy": last[i],
            }
            for i, name in enumerate(scenario.node_ids())
        ],
    }


def _write(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
