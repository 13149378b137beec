"""A live run: real agents on this machine, against a real broker, from start to summary.json."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.progress import Progress

from agent.core.wire import chunk_count
from agent.errors import ConfigError
from agent.learning.factory import build_module, is_factory
from agent.network.mdns import advertise_broker
from sim_harness.agents import OWN_PROCESS_NODES, Agents
from sim_harness.brokers import open_broker
from sim_harness.evidence import (
    Totals,
    collect,
    counted,
    final_accuracy,
    params_sha256,
    summary,
    write_evaluations,
    write_rounds,
    write_summary,
)
from sim_harness.fleet import LOOPBACK, NodeFiles, lay_out, load_data
from sim_harness.folders import check_empty, made
from sim_harness.progress import progress_bar
from sim_harness.scenario import Scenario, dump_scenario
from sim_harness.scenario_sections import DiscoverySettings

_FLEET_CHARACTERS = 31


def run_live(scenario: Scenario, broker_kind: str, out: Path, console: Console) -> dict[str, Any]:
    """Run the scenario with real agents; write its files to `out` (new or empty) and return the summary."""
    check_empty(out)
    engine = scenario.engine
    if engine.kind not in {"default", "sequential"} or engine.precision == "bf16":
        raise ConfigError(
            f"engine.kind {engine.kind}, precision {engine.precision}: real agents train `sequential` in fp32"
        )
    if not scenario.network.is_perfect:
        raise ConfigError("network: real agents meet the network that there is; faults are for `emulate`")
    scenario = replace(scenario, engine=replace(engine, kind="sequential", precision="fp32"))
    started, phase_s = time.monotonic(), {}
    if scenario.discovery.mdns and scenario.nodes > OWN_PROCESS_NODES:
        console.print(
            f"more than {OWN_PROCESS_NODES} nodes share processes and find each other by a list, not over mDNS"
        )
        scenario = replace(scenario, discovery=DiscoverySettings(mdns=False, static=True))
    data = load_data(scenario)
    if is_factory(data.model.name):
        build_module(data.model, scenario.seed)  # to fail now, and not after the last round
    with ExitStack() as stack:
        out = made(out)
        broker = stack.enter_context(_closing(open_broker(broker_kind, out / "broker")))
        (out / "scenario.yaml").write_text(dump_scenario(scenario), encoding="utf-8")
        fleet = f"{scenario.name[: _FLEET_CHARACTERS - 7].rstrip('-')}-{secrets.token_hex(3)}"
        over_mdns = scenario.discovery.mdns and broker.host == LOOPBACK
        if over_mdns:
            stack.enter_context(_closing(advertise_broker(fleet, broker.port, lambda _: True, interfaces=(LOOPBACK,))))
        address = None if over_mdns else (broker.host, broker.port)
        nodes = lay_out(scenario, data, out, fleet, address)
        phase_s["set_up"] = time.monotonic() - started
        agents = stack.enter_context(_closing(Agents()))
        agents.start(nodes, scenario.engine.workers)
        with progress_bar(console) as progress:
            watch = _Watch(nodes, scenario.rounds, progress)
            agents.wait(watch.poll, patience_s=2.0 * _patience_s(nodes[0]))
        phase_s["run"] = time.monotonic() - started - phase_s["set_up"]
        counts = broker.counts()
    evidence = collect(nodes)
    write_rounds(out / "rounds.csv", evidence)
    write_evaluations(out / "evaluation.csv", nodes)
    accuracy = final_accuracy(scenario, data, [node.params for node in evidence])
    wall_s = time.monotonic() - started
    phase_s["evaluation"] = wall_s - phase_s["set_up"] - phase_s["run"]
    totals = Totals()
    for node in evidence:
        for record in node.records:
            totals.add(record)
    traffic = counted(counts, totals.mixed, chunk_count(len(evidence[0].params)))
    ends = [node.end for node in evidence]
    digest = params_sha256(end.params for end in ends)
    values = summary(scenario, ends, totals, accuracy, traffic, wall_s, phase_s, digest)
    write_summary(out / "summary.json", values)
    return values


class _Watch:
    """Follows the journals of the nodes, and shows how far the fleet is."""

    def __init__(self, nodes: list[NodeFiles], rounds: int, progress: Progress) -> None:
        self._files = [node.state / "rounds.jsonl" for node in nodes]
        self._read = [0] * len(nodes)
        self._progress = progress
        self._task = progress.add_task("starting the agents", total=rounds * len(nodes))
        self._last = time.monotonic()

    def poll(self) -> float:
        """Show the rounds that have ended since the last look; return when (monotonic) one last did."""
        done = sum(self._new_lines(i) for i in range(len(self._files)))
        if done:
            self._last = time.monotonic()
            self._progress.update(self._task, advance=done, description="rounds of all nodes")
        return self._last

    def _new_lines(self, index: int) -> int:
        path = self._files[index]
        if not path.exists():
            return 0
        new = b""
        if path.stat().st_size < self._read[index]:  # begun anew: the rest of the older one has its name with .1
            new, self._read[index] = _from(path.with_suffix(".jsonl.1"), self._read[index]), 0
        more = _from(path, self._read[index])
        self._read[index] += len(more)
        return new.count(b"\n") + more.count(b"\n")


def _from(path: Path, position: int) -> bytes:
    with path.open("rb") as file:
        file.seek(position)
        return file.read()


def _patience_s(node: NodeFiles) -> float:
    """Return the longest that one node may take for one step of its run."""
    from agent.config import load_config

    run = load_config(node.config).run
    return run.start_timeout_s + run.round_deadline_s


@contextmanager
def _closing(thing: Any) -> Iterator[Any]:
    try:
        yield thing
    finally:
        thing.close()
