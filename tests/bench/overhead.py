"""What agents take a round beyond the bare training loop: rounds of both, turn by turn, on the same cores."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agent.config import AgentConfig, JournalSection, PolicySection, TopologySection
from agent.learning.link import child_environment
from sim_harness.brokers import Broker
from tests.bench.agents import ROOT, BenchAgent, agents, bench_config, broker_folder, unit_environment
from tests.bench.lines import Line
from tests.bench.processes import children, running_s
from tests.device_rig import write_config

WARM_UP = 3
"""Rounds that don't count: torch is imported in the first one."""
ROUNDS = 20
ROUND_LINE = r"round=(\d+) kind=(\w+) .* loss=(\S+) "


@dataclass(frozen=True, slots=True)
class Spent:
    """What one round took."""

    cpu_s: float
    wall_s: float
    loss: str
    daemon_s: float = 0.0
    """CPU time of agents without their trainers."""


def overhead() -> Iterator[Line]:
    """Compare one agent alone, and two that share, with as many bare loops."""
    for roster in (("a",), ("a", "b")):
        with broker_folder() as (broker, folder):
            configs = training_configs(broker, folder, roster, PolicySection(name="d-psgd"))
            ours, bare = compare(configs, folder)
        label = f"agent overhead a training round, {len(roster)} agent{'s' * (len(roster) > 1)}"
        yield f"{label}: CPU", ratios([one.cpu_s for one in ours], [one.cpu_s for one in bare])
        yield f"{label}: wall time", ratios([one.wall_s for one in ours], [one.wall_s for one in bare])
        daemon_s, bare_s = sum(one.daemon_s for one in ours), sum(one.cpu_s for one in bare)
        yield (
            f"{label}: CPU without the trainers",
            f"{100 * daemon_s / bare_s:.1f} % of a bare round's; {1e3 * daemon_s / ROUNDS / len(roster):.1f} ms each",
        )
        if len(roster) == 1:
            same = [one.loss for one in ours] == [one.loss for one in bare]
            yield f"{label}: same losses as bare", "yes" if same else "NO: they did not do the same work"


def training_configs(broker: Broker, folder: Path, roster: tuple[str, ...], policy: PolicySection) -> list[AgentConfig]:
    """Return agents that train GN-LeNet on noise of CIFAR-10's shape, each linked to all others."""
    sections = {
        "policy": policy,
        "topology": TopologySection(kind="regular", degree=len(roster) - 1),
        "journal": JournalSection(),
    }
    return [bench_config(folder, me, roster, broker, **sections) for me in roster]


def compare(configs: list[AgentConfig], folder: Path) -> tuple[list[Spent], list[Spent]]:
    """Return what each round took agents and bare loops, all together; whose turn it is not stands still."""
    ours, bare = [], []
    with ExitStack() as stack:
        loops = [stack.enter_context(BareLoop(config, folder)) for config in configs]
        fleet = stack.enter_context(agents(configs, folder))
        stack.callback(lambda: stand_still(fleet, still=False))
        began_s = cpu_s = daemon_s = 0.0
        for _ in range(WARM_UP + ROUNDS):
            loss = hear_round(fleet)
            ended_s, used_s = time.perf_counter(), fleet_s(fleet)
            daemons_s = sum(running_s(agent.pid) for agent in fleet)
            ours.append(Spent(used_s - cpu_s, ended_s - began_s, loss, daemons_s - daemon_s))
            stand_still(fleet, still=True)
            early_s = time.perf_counter() - ended_s  # what they did of the next round
            bare.append(bare_round(loops))
            began_s, cpu_s, daemon_s = time.perf_counter() - early_s, used_s, daemons_s
            stand_still(fleet, still=False)
    return ours[WARM_UP:], bare[WARM_UP:]


class BareLoop:
    """A process that trains and does nothing else."""

    def __init__(self, config: AgentConfig, folder: Path) -> None:
        self._threads = config.learning.threads
        self._command = [sys.executable, "-m", "tests.bench.bare", str(folder / f"{config.node.id}.bare.yaml")]
        write_config(config, Path(self._command[-1]))

    def __enter__(self) -> BareLoop:  # noqa: PYI034  typing.Self is younger than Python 3.10
        """Start it, and wait until it has imported torch and read its data."""
        environment = {**child_environment(self._threads), **unit_environment()}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True, start_new_session=True
        )
        self.answer()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()

    def ask(self) -> None:
        """Begin the next round."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Wait for the end of what was asked for; return the loss."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()


def bare_round(loops: Sequence[BareLoop]) -> Spent:
    """Train one round in all loops at once."""
    began_s, before_s = time.perf_counter(), sum(running_s(loop.process.pid) for loop in loops)
    for loop in loops:
        loop.ask()
    losses = [loop.answer() for loop in loops]
    wall_s = time.perf_counter() - began_s
    return Spent(sum(running_s(loop.process.pid) for loop in loops) - before_s, wall_s, losses[0])


def hear_round(fleet: Sequence[BenchAgent]) -> str:
    """Wait until every agent has ended one more round; return the first one's loss."""
    words = [agent.hear(ROUND_LINE).text for agent in fleet]
    found = re.search(ROUND_LINE, words[0])
    return found[3] if found else ""


def fleet_s(fleet: Sequence[BenchAgent]) -> float:
    """Return the CPU time of all agents and their trainers."""
    return sum(running_s(pid) for agent in fleet for pid in (agent.pid, *children(agent.pid)))


def stand_still(fleet: Sequence[BenchAgent], *, still: bool) -> None:
    """Stop agents and their trainers where they are, or let them go on."""
    for agent in fleet:
        for pid in (agent.pid, *children(agent.pid)):
            os.kill(pid, signal.SIGSTOP if still else signal.SIGCONT)


def ratios(ours: list[float], bare: list[float]) -> str:
    """Return how much more all rounds took, and the median and range of single rounds, each with its neighbour."""
    single = [100 * (one / other - 1) for one, other in zip(ours, bare, strict=True)]
    whole = 100 * (sum(ours) / sum(bare) - 1)
    spread = f"median {statistics.median(single):+.1f}, from {min(single):+.1f} to {max(single):+.1f}"
    noise = statistics.median(bare)
    return (
        f"{whole:+.1f} % over {len(ours)} rounds; single rounds {spread} %; a bare round {1e3 * noise:.0f} ms, from "
        f"{1e3 * min(bare):.0f} to {1e3 * max(bare):.0f}"
    )
