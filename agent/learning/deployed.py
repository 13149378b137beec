"""A model as an application meets it: stored values in, scores and probabilities out.

Without `from __future__ import annotations`: TorchScript wants the types of `forward` to be types, not text.
"""

from typing import TYPE_CHECKING

from agent.learning.data import AS_THEY_ARE, Normalisation
from agent.learning.layers import require_torch

if TYPE_CHECKING:
    from torch import nn


def deploy(model: "nn.Module", normalisation: Normalisation) -> "nn.Module":
    """Return a module that normalises as `Normalisation.apply` does, bit for bit, asks `model`, and adds softmax."""
    require_torch()
    import torch

    class Deployed(torch.nn.Module):  # type: ignore[misc]  # torch is not looked into, and may not be there
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.as_they_are: bool = normalisation == AS_THEY_ARE
            self.scale: float = normalisation.scale
            self.mean: float = normalisation.mean
            self.std: float = normalisation.std

        def forward(self, stored: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Return scores and probabilities, each of shape (n, classes), of values as their source stores them."""
            values = stored.to(torch.float32)
            if not self.as_they_are:
                values = (values / self.scale - self.mean) / self.std
            scores = self.model(values)
            return scores, torch.softmax(scores, dim=1)

    return Deployed().eval()
