"""Real agents on a real broker for the bench: started, listened to over NOTIFY_SOCKET and their log, and stopped."""

from __future__ import annotations

import os
import queue
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.config import (
    AgentConfig,
    DataSection,
    DiscoverySection,
    LearningSection,
    ModelSection,
    MqttSection,
    NodeSection,
    RunSection,
)
from agent.core.seeding import generator
from agent.status import Status, read_status
from sim_harness.brokers import Broker, open_broker
from tests.device_rig import device_config, write_config

ROOT = Path(__file__).parents[2]
GN_LENET = ModelSection(name="gn-lenet", input_shape=(3, 32, 32), classes=10)
CIFAR_LEARNING = LearningSection(local_steps=20, batch_size=32, lr=0.1)
"""What the paper trains CIFAR-10 with, on one core."""
PATIENCE_S = 120.0
"""How long the bench waits for any one word of an agent."""
STOP_S = 20.0
SAMPLES = 216
"""Of one node: without the held-out tenth there are 194, as many as 256 nodes have of CIFAR-10."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108  names in it are drawn by tempfile
_TAIL_LINES = 20


@dataclass(frozen=True, slots=True)
class Word:
    """One line of an agent's log, or one message to its service manager, and when it came (perf_counter)."""

    text: str
    at_s: float


class BenchAgent:
    """One `python -m agent run`."""

    def __init__(self, config: AgentConfig, folder: Path) -> None:
        self.config = config
        folder.mkdir(parents=True, exist_ok=True)
        self._path = write_config(config, folder / f"{config.node.id}.yaml")
        self._words: queue.SimpleQueue[Word | None] = queue.SimpleQueue()
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = folder / f"{config.node.id}.sock"
        self._socket.bind(str(address))
        self.started_s = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent", "run", "--config", str(self._path)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **unit_environment(), "NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "120000000"},
            start_new_session=True,
        )
        self._threads = [threading.Thread(target=target) for target in (self._read_log, self._read_socket)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Process id of the agent itself."""
        return self.process.pid

    def hear(self, pattern: str) -> Word:
        """Return the next word that matches, and forget those before it."""
        until = time.perf_counter() + PATIENCE_S
        while (left_s := until - time.perf_counter()) > 0:
            try:
                word = self._words.get(timeout=left_s)
            except queue.Empty:
                break
            if word is None:
                break
            if re.search(pattern, word.text):
                return word
        tail = "\n".join(self._tail)
        raise RuntimeError(f"{self.config.node.id} did not say {pattern!r}; its last words:\n{tail}")

    def hear_until(self, moment_s: float) -> None:
        """Listen until that moment of perf_counter, and forget it all; the agent must be alive then."""
        while (left_s := moment_s - time.perf_counter()) > 0:
            with suppress(queue.Empty):
                self._words.get(timeout=left_s)
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.config.node.id} has ended; its last words:\n" + "\n".join(self._tail))

    def status(self) -> Status:
        """Return the agent's own page."""
        return read_status(Path(self.config.node.runtime_dir))

    def close(self) -> None:
        """Stop the agent and what listens to it."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wake:
            wake.sendto(b"", self._socket.getsockname())
        for thread in self._threads:
            thread.join(STOP_S)
        self._socket.close()

    def _read_log(self) -> None:
        assert self.process.stderr
        with self.process.stderr as lines:
            for line in lines:
                self._tail.append(line.rstrip())
                self._words.put(Word(line.rstrip(), time.perf_counter()))
        self._words.put(None)

    def _read_socket(self) -> None:
        while message := self._socket.recv(4096):
            self._words.put(Word(message.decode(), time.perf_counter()))


@contextmanager
def agents(configs: list[AgentConfig], folder: Path) -> Iterator[list[BenchAgent]]:
    """Start agents, and leave none behind."""
    with ExitStack() as stack:
        running = []
        for config in configs:
            running.append(BenchAgent(config, folder))
            stack.callback(running[-1].close)
        yield running


@contextmanager
def broker_folder() -> Iterator[tuple[Broker, Path]]:
    """Start mosquitto, with a folder on disk whose `run` lies in memory, as a device's /run, where there is such."""
    memory = SHARED_MEMORY if Path(SHARED_MEMORY).is_dir() else None
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir=memory) as run:
        (Path(disk) / "run").symlink_to(run)
        with closing(open_broker("mosquitto", Path(disk) / "broker")) as broker:
            yield broker, Path(disk)


def unit_environment() -> dict[str, str]:
    """Return what the systemd unit puts into an agent's environment."""
    unit = (ROOT / "systemd" / "skiptrain-agent.service").read_text(encoding="utf-8")
    return dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE))


def noise(folder: Path) -> DataSection:
    """Return data of CIFAR-10's shape, made in `folder`."""
    path = folder / "noise.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        x = generator(0, "bench", "noise").integers(0, 256, (SAMPLES, 3, 32, 32), dtype=np.uint8)
        np.savez(path, x=x, y=np.arange(SAMPLES) % 10)
    return DataSection(source="npz", path=str(path), layout="nchw")


def bench_config(folder: Path, me: str, roster: tuple[str, ...], broker: Broker, **sections: Any) -> AgentConfig:
    """Return an agent's configuration at `broker`; without more `sections` it waits for `roster` for a day."""
    defaults: dict[str, Any] = {
        "node": NodeSection(
            id=me, fleet="fleet", state_dir=str(folder / me / "state"), runtime_dir=str(folder / "run" / me)
        ),
        "run": RunSection(id="bench", rounds=1_000_000, roster=roster, start_timeout_s=86_400.0),
        "model": GN_LENET,
        "data": noise(folder),
        "learning": CIFAR_LEARNING,
        "mqtt": MqttSection(host=broker.host, port=broker.port),
        "discovery": DiscoverySection(mdns=False),
    }
    return device_config(folder, me, roster, **{**defaults, **sections})
