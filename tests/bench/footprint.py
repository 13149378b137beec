"""What one agent takes on this machine: memory, time to READY, bytes written, and an hour of idling."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agent.config import DiscoverySection, PolicySection
from sim_harness.brokers import Broker
from tests.bench.agents import ROOT, BenchAgent, agents, bench_config, broker_folder
from tests.bench.lines import Line
from tests.bench.overhead import ROUND_LINE, WARM_UP, training_configs
from tests.bench.processes import Memory, Usage, children, memory, usage

IDLE_MINUTES = 1.0
IDLE_SAMPLES = 6
SETTLE_S = 5.0
"""mDNS takes two seconds to announce a node."""
STARTS = 5
BYTE_ROUNDS = 20
AT_REST_S = 5.0
PEAK_S = 10.0
PEAK_SAMPLES = 40
LOOPBACK = ("127.0.0.1",)


@contextmanager
def waiting_agent(broker: Broker, folder: Path, *, mdns: bool) -> Iterator[BenchAgent]:
    """Start an agent that is ready, connected, and waits for a node that never comes."""
    discovery = DiscoverySection(mdns=mdns, interfaces=LOOPBACK if mdns else ())
    config = bench_config(folder, "a", ("a", "b"), broker, discovery=discovery)
    with agents([config], folder) as (agent,):
        agent.hear("connected to the broker")
        yield agent


def waiting() -> Iterator[Line]:
    """Measure an agent that waits for its fleet and has not trained yet, and what it would be with torch in it."""
    for mdns in (True, False):
        with broker_folder() as (broker, folder), waiting_agent(broker, folder, mdns=mdns) as agent:
            agent.hear_until(time.perf_counter() + SETTLE_S)
            yield f"waiting, mDNS {'on' if mdns else 'off'}", _held(memory(agent.pid), usage(agent.pid))
    for program in ("pass", "import numpy", "import torch"):
        command = [sys.executable, "-c", f"{program}\nprint(flush=True)\ninput()"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as process:
            assert process.stdout
            process.stdout.readline()
            yield f"for comparison, python -c '{program}'", said_memory(memory(process.pid))
            process.communicate(b"\n")


def start() -> Iterator[Line]:
    """Measure the time from the start of the process to READY=1, and the imports' share of it."""
    for mdns in (True, False):
        with broker_folder() as (broker, folder):
            ready = [_ready_s(broker, folder / str(i), mdns=mdns) for i in range(STARTS)]
        names = "agent.__main__, agent.device" + ", agent.network.mdns" * mdns
        program = f"import time; s = time.perf_counter(); import {names}; print(time.perf_counter() - s)"
        imports = [
            float(subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True).stdout)
            for _ in range(STARTS)
        ]
        share = statistics.median(imports) / statistics.median(ready)
        yield (
            f"start to READY=1, mDNS {'on' if mdns else 'off'}",
            f"{_spread(ready)}; imports {100 * share:.0f} % of it",
        )


def _ready_s(broker: Broker, folder: Path, *, mdns: bool) -> float:
    discovery = DiscoverySection(mdns=mdns, interfaces=LOOPBACK if mdns else ())
    with agents([bench_config(folder, "a", ("a", "b"), broker, discovery=discovery)], folder) as (agent,):
        return agent.hear("READY=1").at_s - agent.started_s


def training() -> Iterator[Line]:
    """Measure two agents that share: memory while they train, with trainers at rest, and bytes a round."""
    policy = PolicySection(name="skiptrain", train_rounds=2, sync_rounds=2)
    with broker_folder() as (broker, folder), ExitStack() as stack:
        configs = training_configs(broker, folder, ("a", "b"), policy)
        first, second = stack.enter_context(agents(configs, folder))
        for _ in range(WARM_UP):
            first.hear(ROUND_LINE)
        yield from _bytes(first)
        yield from _peaks(first)
        os.kill(second.pid, signal.SIGSTOP)  # silent, but not offline: it is waited for
        stack.callback(os.kill, second.pid, signal.SIGCONT)
        first.hear_until(time.perf_counter() + AT_REST_S)
        (trainer,) = children(first.pid)
        yield "has trained, waits for a neighbour: agent", _held(memory(first.pid), usage(first.pid))
        yield "has trained, waits for a neighbour: trainer", said_memory(memory(trainer))


def _bytes(agent: BenchAgent) -> Iterator[Line]:
    """Count what each kind of round writes."""
    kinds: dict[str, list[tuple[int, int]]] = {}
    before = usage(agent.pid)
    for _ in range(BYTE_ROUNDS):
        found = re.search(ROUND_LINE, agent.hear(ROUND_LINE).text)
        now = usage(agent.pid)
        assert found
        kinds.setdefault(found[2], []).append((now.disk_bytes - before.disk_bytes, now.said_bytes - before.said_bytes))
        before = now
    for kind, counted in kinds.items():
        disk, said = (statistics.fmean(column) for column in zip(*counted, strict=True))
        yield (
            f"written a {kind} round, with a neighbour",
            f"{disk:,.0f} bytes to disk, {said:,.0f} to files, sockets and the trainer's pipe",
        )
    page = agent.status()
    yield "journal, both kinds of rounds", f"{page.journal_bytes / max(1, page.round):,.0f} bytes a round"


def _peaks(agent: BenchAgent) -> Iterator[Line]:
    """Look at the memory of an agent and its trainer many times while rounds go on."""
    (trainer,) = children(agent.pid)
    seen: list[tuple[Memory, Memory]] = []
    until_s = time.perf_counter() + PEAK_S
    while (now_s := time.perf_counter()) < until_s:
        seen.append((memory(agent.pid), memory(trainer)))
        agent.hear_until(now_s + PEAK_S / PEAK_SAMPLES)
    sums = [ours.alone + theirs.alone for ours, theirs in seen]
    for name, sizes in (
        ("agent", [ours.alone for ours, _ in seen]),
        ("trainer", [theirs.alone for _, theirs in seen]),
        ("both, libraries that they share twice", sums),
        ("both, PSS as it is", [ours.pss + theirs.pss for ours, theirs in seen]),
    ):
        peak, mean = megabytes(max(sizes)), megabytes(statistics.fmean(sizes))
        yield f"in rounds of GN-LeNet: {name}", f"peak {peak}, mean {mean}, {len(sizes)} looks"


def _spread(seconds: list[float]) -> str:
    low, high = min(seconds), max(seconds)
    return f"median {statistics.median(seconds):.2f} s of {len(seconds)}, from {low:.2f} to {high:.2f}"


def idle(minutes: float = IDLE_MINUTES) -> Iterator[Line]:
    """Let an agent wait, with mDNS on, and say what that took."""
    with broker_folder() as (broker, folder), waiting_agent(broker, folder, mdns=True) as agent:
        yield from _idling(agent, minutes)


def _idling(agent: BenchAgent, minutes: float) -> Iterator[Line]:
    begun_s = time.perf_counter()
    agent.hear_until(begun_s + SETTLE_S)
    begun_s, before = time.perf_counter(), usage(agent.pid)
    yield "idle, mDNS on: at the start", _held(memory(agent.pid), before)
    for number in range(1, IDLE_SAMPLES + 1):
        agent.hear_until(begun_s + 60 * minutes * number / IDLE_SAMPLES)
        now = usage(agent.pid)
        yield f"idle, mDNS on: after {minutes * number / IDLE_SAMPLES:g} min", _held(memory(agent.pid), now)
    seconds = time.perf_counter() - begun_s
    cpu_s = now.cpu_s - before.cpu_s
    yield f"idle, {minutes:g} min: CPU", f"{cpu_s:.2f} s, {100 * cpu_s / seconds:.3f} % of one core"
    disk, said = now.disk_bytes - before.disk_bytes, now.said_bytes - before.said_bytes
    text = f"{disk:,} bytes to disk, {said:,} in all, memory and sockets too"
    yield f"idle, {minutes:g} min: written", f"{text}; the journal: {agent.status().journal_bytes:,} bytes"
    wakeups, forced = now.wakeups - before.wakeups, now.preemptions - before.preemptions
    yield f"idle, {minutes:g} min: wakeups", f"{wakeups / seconds:.2f} a second, and {forced} preemptions"


def _held(held: Memory, used: Usage) -> str:
    return f"{said_memory(held)}; {used.threads} threads, {used.files} fds"


def said_memory(held: Memory) -> str:
    """Return a process's memory in words; MB are 10^6 bytes."""
    return f"PSS alone {megabytes(held.alone)}, as it is {held.pss / 1e6:.1f} MB, RSS {held.rss / 1e6:.1f} MB"


def megabytes(size: float) -> str:
    """Return bytes in both units that people call megabytes."""
    return f"{size / 1e6:.1f} MB ({size / 2**20:.1f} MiB)"
