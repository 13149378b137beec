"""Models that a user's own function makes."""

from __future__ import annotations

import itertools
import textwrap

import numpy as np
import pytest

from agent.core.types import ModelShape
from agent.errors import ConfigError, TrainingError
from agent.learning.factory import build_module, describe, describe_factory, is_factory

_NUMBERS = itertools.count()


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """Write a module with a function `make` and return the model that it makes."""

    def write(body: str, function: str = "make") -> ModelShape:
        name = f"users_model_{next(_NUMBERS)}"
        tmp_path.joinpath(f"{name}.py").write_text(textwrap.dedent(body))
        monkeypatch.syspath_prepend(str(tmp_path))
        return ModelShape(f"{name}:{function}", (1, 8, 8), 10)

    return write


GOOD = """
    import torch
    def make(input_shape, classes):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(64, classes))
        model.register_buffer("constant", torch.rand(3), persistent=False)
        return model
"""


def test_a_factory_is_described_like_any_model(factory):
    """A user's model has a length, a schema and seeded initial weights, with constants drawn from the seed."""
    shape = factory(GOOD)
    info = describe(shape, 5)
    assert is_factory(shape.name)
    assert info.n_params == info.initial_params.size == 650
    assert [tensor.name for tensor in describe_factory(shape, 5)[0]] == ["2.weight", "2.bias"]
    assert info.initial_params.tobytes() == describe(shape, 5).initial_params.tobytes()
    assert info == describe(shape, 6)
    assert (info.initial_params != describe(shape, 6).initial_params).any()
    assert np.array_equal(build_module(shape, 5).constant, build_module(shape, 5).constant)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("make = 3", "is a int; it must be a function"),
        ("import no_such_package_of_mine", "needs no_such_package_of_mine"),
        ("1 / 0", "ZeroDivisionError"),
        ("def make(input_shape, classes): return 1 / 0", "ZeroDivisionError"),
        ("def make(input_shape, classes): return 'net'", "returned a str"),
        (
            """
            from torch import nn
            def make(input_shape, classes):
                return nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))
            """,
            "would not share: 1.running_mean, 1.running_var, 1.num_batches_tracked",
        ),
        (
            """
            from torch import nn
            def make(input_shape, classes):
                return nn.Sequential(nn.Flatten(), nn.Linear(64, classes).double())
            """,
            "float32, on the CPU and of known shape; not so: 1.weight, 1.bias",
        ),
        (
            """
            from torch import nn
            def make(input_shape, classes):
                return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
            """,
            "not so: 1.weight, 1.bias",
        ),
        ("from torch import nn\ndef make(input_shape, classes): return nn.Flatten()", "it has none"),
        (
            """
            from torch import nn
            def make(input_shape, classes):
                return nn.Sequential(nn.Flatten(), nn.Linear(64, classes + 1))
            """,
            r"scores of shape \[samples, 10\]; for 2 samples it returned \[2, 11\]",
        ),
        (
            """
            from torch import nn
            def make(input_shape, classes):
                return nn.Sequential(nn.Flatten(), nn.Linear(65, classes))
            """,
            r"cannot take inputs of shape \(1, 8, 8\)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_unusable_factories_say_why(factory, body, words):
    """Whatever a factory does wrong is named, tensors by their names."""
    with pytest.raises((ConfigError, TrainingError), match=words):
        describe(factory(body), 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module_of_mine:make", "no module 'no_such_module_of_mine'"),
        ("agent.learning.no_such:make", r"no module 'agent.learning.no_such'"),
        ("agent.errors:make", "has no 'make'"),
        (":make", "package.module:function"),
        ("agent.errors:", "package.module:function"),
    ],
)
def test_a_missing_factory_is_a_configuration_error(name, words):
    """A name that leads nowhere is the configuration's fault and says which part is missing."""
    with pytest.raises(ConfigError, match=words):
        describe(ModelShape(name, (1, 8, 8), 10), 1)
