"""The registered models as data, and as torch builds them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agent.core.types import ModelShape, params_digest
from agent.errors import ConfigError, TrainingError
from agent.learning.factory import describe
from agent.learning.model import (
    MODELS,
    build,
    dump_params,
    initial_params,
    load_params,
    model_spec,
    n_params,
    parameters,
    schema_hash,
)

DIGITS = ModelShape("small-cnn", (1, 8, 8), 10)
SHAPES = [
    *(ModelShape("small-cnn", shape, 10) for shape in ((1, 8, 8), (3, 224, 224), (64, 4, 4), (16, 1, 1), (1, 2, 9))),
    *(ModelShape(name, (3, 32, 32), 10) for name in sorted(MODELS)),
    *(ModelShape(name, (1, 28, 28), 62) for name in sorted(MODELS)),
]


@pytest.mark.parametrize(
    ("name", "input_shape", "classes", "count"),
    [
        ("gn-lenet", (3, 32, 32), 10, 89_834),
        ("femnist-cnn", (1, 28, 28), 62, 1_690_046),
        ("small-cnn", (1, 8, 8), 10, 6_186),
        ("small-cnn", (3, 224, 224), 10, 10_314),
    ],
)
def test_numbers_of_parameters(name, input_shape, classes, count):
    """The published models have exactly the published sizes, and small-cnn stays small."""
    assert n_params(parameters(model_spec(ModelShape(name, input_shape, classes)))) == count


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.name}-{shape.input_shape}")
def test_data_and_torch_agree(shape):
    """Torch's tensors have the names, shapes and order that the data say, and the model maps inputs to scores."""
    spec = model_spec(shape)
    module = build(spec)
    assert [(key, tuple(value.shape)) for key, value in module.state_dict().items()] == [
        (tensor.name, tensor.shape) for tensor in parameters(spec)
    ]
    assert module(torch.zeros(2, *shape.input_shape)).shape == (2, shape.classes)


def test_load_and_dump_are_inverse():
    """What is loaded is dumped again bit for bit, as a read-only copy."""
    spec = model_spec(DIGITS)
    module, start = build(spec), initial_params(spec, 7)
    load_params(module, start)
    dumped = dump_params(module)
    assert dumped.tobytes() == start.tobytes()
    assert dumped.dtype == np.float32
    assert not dumped.flags.writeable
    with torch.no_grad():
        next(module.parameters()).zero_()
    assert dumped.tobytes() == start.tobytes()


def test_wrong_length_is_refused():
    """A vector of another model is an error, not a partial load."""
    with pytest.raises(TrainingError, match="6186 parameters"):
        load_params(build(model_spec(DIGITS)), np.zeros(10, dtype=np.float32))


def test_initial_weights_are_distributed_as_torch_s():
    """Each tensor fills +-1/sqrt(fan_in) evenly or is constant, exactly as torch's defaults do."""
    spec = model_spec(ModelShape("gn-lenet", (3, 32, 32), 10))
    module = build(spec)
    flat, offset = initial_params(spec, 3), 0
    for tensor, theirs in zip(parameters(spec), module.parameters(), strict=True):
        size = math.prod(tensor.shape)
        ours, offset = flat[offset : offset + size], offset + size
        if tensor.fan_in is None:
            assert (ours == tensor.constant).all()
            assert (theirs == tensor.constant).all()
            continue
        bound = 1.0 / math.sqrt(tensor.fan_in)
        assert max(np.abs(ours).max(), theirs.abs().max().item()) <= bound * (1 + 1e-6)
        if size > 1000:
            assert ours.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
            assert theirs.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_initial_weights_are_pinned():
    """A run starts from the same bits on every machine and version of numpy."""
    info = describe(DIGITS, 1)
    assert params_digest(info.initial_params) == "1ea0e46070292411"
    assert info.schema_hash.hex() == "9af78f158b18680c"
    assert (info.initial_params != describe(DIGITS, 2).initial_params).any()


def test_schema_hash_tells_models_apart():
    """Models have equal schema hashes of 8 bytes exactly where their tensors have equal names and shapes."""
    hashes: dict[bytes, set[object]] = {}
    for shape in SHAPES:
        tensors = parameters(model_spec(shape))
        hashes.setdefault(schema_hash(tensors), set()).add(tuple((tensor.name, tensor.shape) for tensor in tensors))
    assert len(hashes) == len(set().union(*hashes.values())) == len(SHAPES) - 1  # two small-cnn average to 4x4
    assert {len(key) for key in hashes} == {8}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (ModelShape("resnet", (3, 32, 32), 10), "use one of femnist-cnn, gn-lenet, small-cnn"),
        (ModelShape("gn-lenet", (1, 4, 4), 10), "take small-cnn"),
        (ModelShape("small-cnn", (0, 4, 4), 10), "at least"),
        (ModelShape("small-cnn", (1, 8, 8), 1), "at least 2"),
    ],
)
def test_impossible_models_are_refused(shape, words):
    """An unknown model, or one that cannot take the input, is an error that says what would do."""
    with pytest.raises(ConfigError, match=words):
        model_spec(shape)
