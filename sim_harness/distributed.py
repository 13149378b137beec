"""Processes on one or several hosts that `torchrun` has started, and what they say to each other through gloo.

What goes between them is float32 rows and msgpack, never pickles. A process that ends is noticed at once by who
exchanges something with it, a host that falls silent after `SILENCE_S`; either is an AgentError in all the others.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from agent.core.types import Params
from agent.errors import AgentError, ConfigError

SILENCE_S: Final = 600.0
"""How long a process waits for another: longer than one may train while the others have nothing to do."""
MESSAGE_BYTES: Final = 1 << 20
"""Arrays travel together until they are so large."""
_SIOCGIFADDR: Final = 0x8915
"""Ask an interface for its IPv4 address, netdevice(7)."""
_NAME_BYTES, _ADDRESS_AT = 15, slice(20, 24)
_PLACE: Final = re.compile(r"^\[\S+\] ")
"""Where in its own source gloo found an error."""
_VARIABLES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")

_T = TypeVar("_T")


@dataclass(slots=True)
class World:
    """One of several processes; `connect` finds the others."""

    rank: int
    size: int
    sent_bytes: int = 0
    """Of rows, by this process."""

    def connect(self) -> None:
        """Wait for the other processes; AgentError where they do not come."""
        from torch import distributed

        if name := interface_to(os.environ.get("MASTER_ADDR", "")):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        with _said(f"the {self.size} processes cannot reach each other"):
            distributed.init_process_group("gloo", timeout=timedelta(seconds=SILENCE_S))

    def close(self) -> None:
        """Leave; the others notice if they still need this process."""
        from torch import distributed

        if distributed.is_initialized():
            with suppress(RuntimeError):
                distributed.destroy_process_group()

    def largest(self, number: int) -> int:
        """Return the largest of the numbers that the processes give."""
        import torch
        from torch import distributed

        found = torch.tensor([number])
        with self._together():
            distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return int(found[0])

    def gather(self, value: _T, of: type[_T] | Any) -> list[_T]:
        """Return the values that the processes give, by rank; `of` is their type, one that msgspec knows."""
        import torch
        from torch import distributed

        said = np.frombuffer(msgspec.msgpack.encode(value), np.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._together():
            distributed.all_gather(sizes, torch.tensor([len(said)]))
            padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8)
            padded[: len(said)] = torch.from_numpy(said.copy())
            heard = [torch.empty_like(padded) for _ in sizes]
            distributed.all_gather(heard, padded)
        texts = [bytes(text[: int(size)].numpy()) for text, size in zip(heard, sizes, strict=True)]
        return [msgspec.msgpack.decode(text, type=of) for text in texts]

    def swap(self, give: Mapping[int, Sequence[Params]], take: Mapping[int, Sequence[Params]]) -> None:
        """Send arrays to the processes of those ranks, and fill these arrays with what they send; in order, by rank.

        Both sides give as many arrays of the same sizes, each C-contiguous.
        """
        import torch
        from torch import distributed

        arriving: list[tuple[list[Params], Params]] = []
        with self._together():
            under_way = []
            for rank, arrays in sorted(take.items()):
                for tag, group in enumerate(messages(arrays)):
                    whole = np.empty(sum(array.size for array in group), np.float32)
                    arriving.append((group, whole))
                    under_way.append(distributed.irecv(torch.from_numpy(whole), src=rank, tag=tag))
            for rank, arrays in sorted(give.items()):
                for tag, group in enumerate(messages(arrays)):
                    whole = np.concatenate([array.reshape(-1) for array in group])
                    self.sent_bytes += whole.nbytes
                    under_way.append(distributed.isend(torch.from_numpy(whole), dst=rank, tag=tag))
            for message in under_way:
                message.wait()
        for group, whole in arriving:
            ends = np.cumsum([array.size for array in group])
            for array, part in zip(group, np.split(whole, ends[:-1]), strict=True):
                array[...] = part.reshape(array.shape)

    def _together(self) -> Any:
        return _said(f"process {self.rank} of {self.size} has lost another one, which has ended or cannot be reached")


def messages(arrays: Iterable[Params]) -> Iterator[list[Params]]:
    """Yield the arrays as they travel together: each message takes time of its own, each copy takes memory."""
    group: list[Params] = []
    for array in arrays:
        group.append(array)
        if sum(one.nbytes for one in group) >= MESSAGE_BYTES:
            yield group
            group = []
    if group:
        yield group


def open_world() -> World | None:
    """Return this process among those that torchrun has started, or None where it has not; ConfigError.

    It keeps to its share of the host's cores from now on.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    rank, size, local_rank, local_size = (_number(name) for name in _VARIABLES)
    if rank >= size or local_rank >= local_size:
        raise ConfigError(
            f"the environment says RANK {rank} of WORLD_SIZE {size}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE "
            f"{local_size}; start with torchrun, which counts from 0"
        )
    if size == 1:
        return None
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, share_of(cores, local_rank, local_size))
    return World(rank, size)


def share_of(cores: list[int], rank: int, size: int) -> list[int]:
    """Return the cores of one of `size` processes; they share a core where there are not enough."""
    if len(cores) < size:
        return [cores[rank % len(cores)]]
    return cores[rank * len(cores) // size : (rank + 1) * len(cores) // size]


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} in the environment, no number; start with torchrun, which sets it")
    return int(text)


def interface_to(host: str) -> str:
    """Return the network interface whose IPv4 address others at `host` see; empty where nothing tells.

    Gloo would take the one that the host's own name stands for, often the loopback.
    """
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 1))  # of a datagram socket: nothing is sent
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                asked = struct.pack("256s", name.encode()[:_NAME_BYTES])
                if fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)[_ADDRESS_AT] == own:
                    return name
    return ""


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Turn torch's exceptions into an AgentError that says what is wrong and what to do."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        line = next(iter(str(error).splitlines()), "") or type(error).__name__
        reason = _PLACE.sub("", line).partition(". ")[0]
        raise AgentError(
            f"{what} ({reason}); look at what the others said and start all of them again, with --resume where there "
            "is a checkpoint (docs/distributed.md)"
        ) from None
