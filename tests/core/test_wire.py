"""The wire: what goes in comes out whole, and nothing else comes out but `Refused`."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.mixing import adopt
from agent.core.types import ModelUpdate, NodeId, Params, params_digest
from agent.core.wire import (
    FLOAT32,
    HEADER_BYTES,
    LARGEST,
    MAGIC,
    MAX_CHUNKS,
    PARTIAL_PER_SENDER,
    Assembler,
    Format,
    Refused,
    encode,
    parse_header,
)
from tests.core.wire_bytes import AT, patched, sealed

N_PARAMS = 100
FORM = Format(b"R" * 16, b"S" * 8, N_PARAMS)
NODE = NodeId("pi-7")
U32 = st.integers(0, 2**32 - 1)


def update(params: Params | None = None, **changes: object) -> ModelUpdate:
    """Return an update with a random model."""
    if params is None:
        params = np.random.default_rng(1).standard_normal(N_PARAMS).astype(np.float32)
    made = ModelUpdate(NODE, 5, 2, b"ROSTER88", 4, 3, params, params_digest(params))
    return replace(made, **changes)  # type: ignore[arg-type]  # a test changes any field


def chunks(count: int, made: ModelUpdate | None = None, form: Format = FORM) -> list[bytes]:
    """Return an update as `count` messages."""
    room = -(-form.n_params * 4 // count)
    found = encode(made or update(), form, HEADER_BYTES + room)
    assert len(found) == count
    return found


def received(messages: list[bytes], assembler: Assembler | None = None) -> list[ModelUpdate]:
    """Return the updates that come out of an assembler."""
    assembler = assembler or Assembler(FORM)
    return [whole for message in messages if (whole := assembler.add(NODE, message)[1]) is not None]


def same(one: ModelUpdate, two: ModelUpdate) -> bool:
    """Say whether two updates are equal, models included."""
    return one == two and one.params.tobytes() == two.params.tobytes()


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_round_trip(count: int) -> None:
    """A model comes out as it went in, cut into one message or many."""
    made = update()
    (whole,) = received(chunks(count))
    assert same(whole, made)
    assert whole.params.dtype == np.float32


@pytest.mark.parametrize("seed", range(5))
def test_chunks_may_come_in_any_order_and_twice(seed: int) -> None:
    """Order does not matter and neither do duplicates; after the last missing chunk nothing is held."""
    rng, sent = np.random.default_rng(seed), chunks(9)
    first, last = sent[: len(sent) - 1], sent[-1]
    mixed = [first[i] for i in rng.permutation(np.repeat(np.arange(8), 2))]
    assembler = Assembler(FORM)
    assert received(mixed, assembler) == []
    assert assembler.pending_bytes == N_PARAMS * 4
    (whole,) = received([last], assembler)
    assert same(whole, update())
    assert assembler.pending_bytes == 0


def test_two_models_of_a_sender_may_be_under_way_at_once() -> None:
    """The chunks of two rounds may be interleaved."""
    one = chunks(3)
    two = chunks(3, update(np.ones(N_PARAMS, np.float32), round=6))
    found = received([one[0], two[0], two[1], one[1], two[2], one[2]])
    assert [whole.round for whole in found] == [6, 5]


def test_a_model_that_did_not_change_can_be_sent_in_two_rounds_at_once() -> None:
    """Equal models of two rounds have one digest: neither is taken for a part of the other."""
    one, two = chunks(3), chunks(3, update(round=6))
    found = received([one[0], two[0], two[1], one[1], two[2], one[2]])
    assert [whole.round for whole in found] == [6, 5]


def test_a_third_model_of_a_sender_drops_the_oldest() -> None:
    """A sender cannot hold more memory than two models."""
    assembler = Assembler(FORM)
    for value in range(9):
        assembler.add(NODE, chunks(3, update(np.full(N_PARAMS, value, np.float32), round=value))[0])
        assert assembler.pending_bytes <= PARTIAL_PER_SENDER * N_PARAMS * 4


def test_a_claim_of_many_chunks_costs_no_memory() -> None:
    """A model of 400 bytes that is said to come in 4,096 chunks takes little more than itself while it is awaited."""
    claim, assembler = patched(chunks(2)[0], AT["count"], struct.pack("<H", MAX_CHUNKS)), Assembler(FORM)
    assembler.add(NODE, chunks(2)[0])
    tracemalloc.start()
    try:
        assembler.add(NODE, patched(claim, AT["round"], b"\x06"))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 4_000


def test_numbers_whose_average_could_overflow_are_refused() -> None:
    """Ten neighbours at the largest float32 would make an infinite mean; half of that never does."""
    at_bound = np.full(N_PARAMS, LARGEST, np.float32)
    for sign in (-1, 1):
        (whole,) = received(chunks(1, update(sign * at_bound)))
        for count in range(1, 40):
            assert np.isfinite(adopt({NodeId(f"n{i}"): whole.params for i in range(count)})).all()
        with pytest.raises(Refused, match="not finite"):
            received(chunks(1, update(np.nextafter(sign * at_bound, sign * np.float32(np.inf)))))


def test_senders_that_are_no_neighbours_any_more_are_forgotten() -> None:
    """What is under way from them is dropped."""
    assembler = Assembler(FORM)
    assembler.add(NODE, chunks(3)[0])
    assembler.keep_senders({NodeId("other")})
    assert assembler.pending_bytes == 0


def test_the_received_model_does_not_change_with_later_messages() -> None:
    """A model that came out is nobody's buffer any more."""
    assembler = Assembler(FORM)
    (whole,) = received(chunks(3), assembler)
    before = whole.params.tobytes()
    received(chunks(3, update(np.ones(N_PARAMS, np.float32), round=6)), assembler)
    assert whole.params.tobytes() == before


REFUSALS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "nothing": ("truncated", lambda _: b""),
    "half a header": ("truncated", lambda m: m[: HEADER_BYTES - 1]),
    "another protocol": ("not ours", lambda m: patched(m, AT["magic"], b"GET ")),
    "a pickle": ("not ours", lambda m: b"\x80\x04\x95" + m),
    "a newer version": ("other version", lambda m: patched(m, AT["version"], b"\x02")),
    "flags that must be understood": ("other version", lambda m: patched(m, AT["flags"], b"\x00\x01")),
    "an unknown codec": ("unknown codec", lambda m: patched(m, AT["codec"], b"\x09")),
    "another model's size": ("wrong size", lambda m: patched(m, AT["n_params"], struct.pack("<I", 101))),
    "4 GiB": ("wrong size", lambda m: patched(m, AT["n_params"], b"\xff\xff\xff\xff")),
    "too many bytes": ("wrong size", lambda m: sealed(m + b"\0\0\0\0")),
    "too few bytes": ("wrong size", lambda m: sealed(m[:-4])),
    "an offset beyond the end": ("wrong size", lambda m: patched(m, AT["offset"], struct.pack("<I", 4))),
    "chunk 1 of 1": ("wrong size", lambda m: patched(m, AT["index"], struct.pack("<HH", 1, 1))),
    "no chunks": ("wrong size", lambda m: patched(m, AT["index"], struct.pack("<HH", 0, 0))),
    "too many chunks": ("wrong size", lambda m: patched(m, AT["count"], struct.pack("<H", MAX_CHUNKS + 1))),
    "a flipped bit in the model": ("checksum", lambda m: m[:-1] + bytes([m[-1] ^ 1])),
    "a flipped bit in the header": ("checksum", lambda m: m[: AT["round"]] + b"\x07" + m[AT["round"] + 1 :]),
    "another name than the topic's": ("other sender", lambda m: patched(m, AT["sender"], b"pi-8")),
    "a name that goes on": ("other sender", lambda m: patched(m, AT["sender"], b"pi-7-b")),
    "another run": ("other run", lambda m: patched(m, AT["run"], b"X")),
    "another model": ("other schema", lambda m: patched(m, AT["schema"], b"X")),
    "another model's digest": ("digest", lambda m: patched(m, AT["digest"], b"12345678")),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refusal(what: str) -> None:
    """Each kind of wrong message is refused with a reason of its own, and leaves nothing behind."""
    (message,), (reason, spoil) = chunks(1), REFUSALS[what]
    assembler = Assembler(FORM)
    with pytest.raises(Refused) as refused:
        assembler.add(NODE, spoil(message))
    assert refused.value.reason == reason
    assert assembler.pending_bytes == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_models_that_are_not_finite_are_refused(value: float) -> None:
    """One bad number poisons every neighbour: the whole model is refused."""
    params = np.zeros(N_PARAMS, np.float32)
    params[-1] = value
    for count in (1, 3):
        with pytest.raises(Refused, match="not finite"):
            received(chunks(count, update(params)))


@pytest.mark.parametrize("field", ["epoch", "roster", "degree", "trained"])
def test_chunks_of_one_model_must_agree(field: str) -> None:
    """A chunk that tells another story than the first one of its model is refused; the model can still be completed."""
    assembler, sent = Assembler(FORM), chunks(3)
    assembler.add(NODE, sent[0])
    with pytest.raises(Refused, match="chunks disagree"):
        assembler.add(NODE, patched(sent[1], AT[field], b"\x77"))
    with pytest.raises(Refused, match="chunks disagree"):
        assembler.add(NODE, patched(sent[1], AT["count"], struct.pack("<H", 4)))
    (whole,) = received(sent[1:], assembler)
    assert same(whole, update())


def test_chunks_that_do_not_tile_the_model_are_refused_as_a_whole() -> None:
    """A sender that repeats one part under all indices has filled its chunks and fails the digest."""
    sent = chunks(2)
    forged = patched(sent[0], AT["index"], struct.pack("<H", 1))
    with pytest.raises(Refused, match="digest"):
        received([sent[0], forged])


def test_flags_that_may_be_ignored_are() -> None:
    """The low byte of the flags is for additions that old nodes can live with."""
    (message,) = chunks(1)
    (whole,) = received([patched(message, AT["flags"], b"\xff\x00")])
    assert same(whole, update())


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    sender=st.from_regex(r"[a-z0-9](-?[a-z0-9]){0,14}", fullmatch=True).map(NodeId),
    numbers=st.tuples(U32, U32, U32, U32),
    digests=st.tuples(st.binary(min_size=16, max_size=16), *[st.binary(min_size=8, max_size=8)] * 2),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 60)),
)
def test_header_fields_round_trip(
    sender: NodeId, numbers: tuple[int, ...], digests: tuple[bytes, bytes, bytes], shape: tuple[int, int]
) -> None:
    """Every value that a field can hold arrives as it was sent, in every chunk, within the message size."""
    (epoch, degree, round_, trained), (run, schema, roster), (size, room) = numbers, digests, shape
    params = np.arange(size, dtype=np.float32)
    made = ModelUpdate(sender, round_, epoch, roster, degree, trained, params, params_digest(params))
    form = Format(run, schema, size)
    messages = encode(made, form, HEADER_BYTES + room)
    for i, message in enumerate(messages):
        header = parse_header(message, form, sender)
        assert len(message) <= HEADER_BYTES + room
        assert (header.sender, header.round, header.epoch, header.degree) == (sender, round_, epoch, degree)
        assert (header.trained, header.roster, header.digest.hex()) == (trained, roster, made.digest)
        assert (header.offset, header.index, header.count) == (i * room, i, len(messages))


def test_messages_that_cannot_be_are_the_callers_error() -> None:
    """A packet size without room, or a model of too many chunks, is told to the one who configured it."""
    with pytest.raises(ValueError, match="no room beside"):
        encode(update(), FORM, HEADER_BYTES)
    large = np.zeros(MAX_CHUNKS + 1, np.float32)
    with pytest.raises(ValueError, match="raise the broker's packet size"):
        encode(update(large), Format(FORM.run, FORM.schema, large.size), HEADER_BYTES + 4)


def test_header_is_as_docs_say() -> None:
    """112 bytes, little-endian, beginning with the magic and the version."""
    (message,) = chunks(1)
    assert HEADER_BYTES == 112
    assert message[:6] == MAGIC + bytes([1, FLOAT32])
    assert message[AT["sender"] : AT["sender"] + 32] == b"pi-7".ljust(32, b"\0")
    assert struct.unpack_from("<I", message, AT["round"]) == (5,)
