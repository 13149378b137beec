"""Hostile payloads, seeded: spoiled honest traffic, with checksums made right again so that every check is reached."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import TypeAlias

import numpy as np

from agent.core.types import ModelUpdate, NodeId, Params, params_digest
from agent.core.wire import HEADER_BYTES, LARGEST, Format, encode
from tests.core.wire_bytes import AT, patched, sealed

WIDTH = dict.fromkeys(AT, 4) | {
    "version": 1, "codec": 1, "flags": 2, "index": 2, "count": 2, "run": 16, "schema": 8, "sender": 32, "roster": 8,
    "digest": 8,
}  # fmt: skip
"""Bytes of each field of the header."""
STRANGE = (float("nan"), float("inf"), float("-inf"), 3.4e38, -2.0 * LARGEST * 0.99, 1e-42, -0.0)


def seeded(seed: int) -> Random:
    """Return a source of equal draws for equal seeds; Python's own is much faster than numpy's for single numbers."""
    return Random(seed)  # noqa: S311  nothing here is secret


@dataclass(frozen=True, slots=True)
class Payload:
    """One message as it comes in; `sender` is whom its topic names."""

    kind: str
    sender: NodeId
    message: bytes


@dataclass(frozen=True, slots=True)
class Scene:
    """The honest traffic that is spoiled: who shares models of which format in which round."""

    form: Format
    senders: tuple[NodeId, ...]
    roster: bytes
    epoch: int
    degree: int
    round: int
    chunk_bytes: int

    def update(self, rng: Random, params: Params | None = None) -> ModelUpdate:
        """Return some sender's right model of a round near this one."""
        if params is None:
            params = np.full(self.form.n_params, rng.random(), np.float32)
        round_ = max(0, self.round + rng.choice((0, 0, 0, 0, 1, 1, 2, 3, -1)))
        sender = rng.choice(self.senders)
        return ModelUpdate(sender, round_, self.epoch, self.roster, self.degree, round_, params, params_digest(params))

    def model(self, rng: Random) -> tuple[NodeId, list[bytes]]:
        """Return a right model's sender and chunks."""
        update = self.update(rng)
        return update.sender, encode(update, self.form, self.chunk_bytes)

    def chunk(self, rng: Random) -> tuple[NodeId, bytes]:
        """Return one right chunk and its sender."""
        sender, chunks = self.model(rng)
        return sender, rng.choice(chunks)


Found: TypeAlias = Iterable[tuple[NodeId, bytes]]
"""(node of the topic, message) of each message of one attempt."""


def _random(rng: Random, scene: Scene) -> Found:
    sender, chunk = scene.chunk(rng)
    yield sender, rng.randbytes(rng.randrange(2 * len(chunk)))


def _random_fields(rng: Random, scene: Scene) -> Found:
    sender, chunk = scene.chunk(rng)
    yield sender, sealed(chunk[:6] + rng.randbytes(HEADER_BYTES - 6) + chunk[HEADER_BYTES:])


def _flipped(rng: Random, scene: Scene) -> Found:
    sender, chunk = scene.chunk(rng)
    spoiled = bytearray(chunk)
    for _ in range(rng.randint(1, 8)):
        spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    yield sender, bytes(spoiled)


def _overwritten(rng: Random, scene: Scene) -> Found:
    sender, chunk = scene.chunk(rng)
    at, part = rng.randrange(len(chunk)), rng.randbytes(rng.randint(1, 16))
    yield sender, chunk[:at] + part + chunk[at + len(part) :]


def _truncated(rng: Random, scene: Scene) -> Found:
    sender, chunk = scene.chunk(rng)
    cut = chunk[: rng.randrange(len(chunk))]
    yield sender, sealed(cut) if len(cut) >= HEADER_BYTES and rng.random() < 0.5 else cut


def _extended(rng: Random, scene: Scene) -> Found:
    sender, chunk = scene.chunk(rng)
    longer = chunk + rng.randbytes(rng.randint(1, 300))
    yield sender, sealed(longer) if rng.random() < 0.5 else longer


def _spliced(rng: Random, scene: Scene) -> Found:
    (sender, one), (_, two) = scene.chunk(rng), scene.chunk(rng)
    at = rng.randrange(min(len(one), len(two)))
    spliced = one[:at] + two[at:]
    yield sender, sealed(spliced) if rng.random() < 0.7 else spliced


def _near(rng: Random, old: bytes) -> bytes:
    """Return another value of a field: a neighbour of the old one, an extreme, or anything."""
    if len(old) > 4:
        return rng.choice((rng.randbytes(len(old)), bytes(len(old)), b"\xff" * len(old), old[:-1] + b"\x01"))
    top = 2 ** (8 * len(old))
    value = int.from_bytes(old, "little")
    near = (value + 1, value - 1, value + 4, value << 1, value + top // 2, 0, 1, top - 1, rng.randrange(top))
    return (rng.choice(near) % top).to_bytes(len(old), "little")


def _edited(rng: Random, scene: Scene) -> Found:
    sender, chunk = scene.chunk(rng)
    for name in rng.sample(sorted(AT), rng.choice((1, 1, 1, 2))):
        at = AT[name]
        chunk = patched(chunk, at, _near(rng, chunk[at : at + WIDTH[name]]))
    yield sender, chunk


def _lie(rng: Random, scene: Scene) -> Found:
    """Tell one lie in all chunks of a model alike, or in one chunk only, which then disagrees with the others."""
    sender, chunks = scene.model(rng)
    liar = rng.randrange(len(chunks)) if rng.random() < 0.4 else -1
    name = rng.choice(("epoch", "roster", "degree", "round", "trained", "digest", "flags", "count"))
    at = AT[name]
    told = _near(rng, chunks[0][at : at + WIDTH[name]])
    told = told[:1] + b"\0" if name == "flags" else told
    return [(sender, patched(chunk, at, told) if liar in {-1, i} else chunk) for i, chunk in enumerate(chunks)]


def _whole(rng: Random, scene: Scene) -> Found:
    """Replay a right model, its chunks in any order."""
    sender, chunks = scene.model(rng)
    rng.shuffle(chunks)
    return [(sender, chunk) for chunk in chunks]


def _mingled(rng: Random, scene: Scene) -> Found:
    """Mix the chunks of two models, some of them twice, and perhaps without one."""
    both = [*_whole(rng, scene), *_whole(rng, scene)]
    both += rng.sample(both, rng.randint(0, len(both) // 2))
    rng.shuffle(both)
    return both[rng.randint(0, 1) :]


def _strange(rng: Random, scene: Scene) -> Found:
    """Share numbers that are none, or too large to average, with their right digest."""
    params = np.full(scene.form.n_params, rng.random(), np.float32)
    params[rng.randrange(len(params))] = rng.choice(STRANGE)
    update = scene.update(rng, params)
    return [(update.sender, chunk) for chunk in encode(update, scene.form, scene.chunk_bytes)]


def _huge(rng: Random, scene: Scene) -> Found:
    """Claim sizes that nobody has memory for."""
    sender, chunk = scene.chunk(rng)
    size, offset = rng.choice((2**32 - 1, 2**31, scene.form.n_params)), rng.choice((0, 2**32 - 4, 2**31))
    count = rng.choice((4096, 4097, 65535))
    claims = struct.pack("<IIHH", size, offset, rng.choice((0, 4095, 65534)), count)
    yield sender, patched(chunk[: rng.randint(HEADER_BYTES, len(chunk))], AT["n_params"], claims)


def _impostor(rng: Random, scene: Scene) -> Found:
    """Share another node's model under the own topic, or the own one in another's name."""
    sender, chunk = scene.chunk(rng)
    other = rng.choice([*scene.senders, NodeId("nobody")])
    if rng.random() < 0.5:
        yield other, chunk
    else:
        yield sender, patched(chunk, AT["sender"], other.encode().ljust(WIDTH["sender"], b"\0"))


def _foreign(rng: Random, scene: Scene) -> Found:
    """Share what fits another run or another model."""
    form = scene.form
    other = rng.choice(
        (
            replace(form, run=rng.randbytes(16)),
            replace(form, schema=rng.randbytes(8)),
            replace(form, n_params=form.n_params + rng.choice((-1, 1))),
        )
    )
    return _whole(rng, replace(scene, form=other))


def _overlapping(rng: Random, scene: Scene) -> Found:
    """Fill all places of a model with one and the same part."""
    sender, (first, *rest) = scene.model(rng)
    return [(sender, patched(first, AT["index"], struct.pack("<H", i))) for i in range(len(rest) + 1)]


KINDS: dict[str, tuple[int, Callable[[Random, Scene], Found]]] = {
    "random bytes": (8, _random),
    "random fields": (3, _random_fields),
    "bits flipped": (8, _flipped),
    "bytes overwritten": (6, _overwritten),
    "truncated": (6, _truncated),
    "extended": (5, _extended),
    "two spliced": (6, _spliced),
    "fields edited": (16, _edited),
    "model with one lie": (12, _lie),
    "right model, replayed": (12, _whole),
    "chunks mingled": (4, _mingled),
    "strange numbers": (4, _strange),
    "huge claims": (5, _huge),
    "another's name": (5, _impostor),
    "other run or model": (4, _foreign),
    "one part everywhere": (2, _overlapping),
}
"""Kind of payload -> (how often, maker)."""


def attempt(rng: Random, scene: Scene) -> list[Payload]:
    """Return the messages of one hostile attempt of any kind."""
    (kind,) = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()])
    return [Payload(kind, sender, message) for sender, message in KINDS[kind][1](rng, scene)]
