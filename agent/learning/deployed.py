"""A model as an application meets it: stored values in, scores and probabilities out; imports torch, so import it late.

Without `from __future__ import annotations`: TorchScript reads the types of `forward`.
"""

import torch
from torch import Tensor, nn

from agent.learning.data import AS_THEY_ARE, Normalisation


class Deployed(nn.Module):  # type: ignore[misc]  # torch is not looked into, and may not be there
    """Normalises as `Normalisation.apply` does, bit for bit, before the model, and adds softmax behind it."""

    def __init__(self, model: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.model = model
        self.as_they_are: bool = normalisation == AS_THEY_ARE
        self.scale: float = normalisation.scale
        self.mean: float = normalisation.mean
        self.std: float = normalisation.std

    def forward(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and probabilities, each of shape (n, classes), of values as their source stores them."""
        values = stored.to(torch.float32)
        if not self.as_they_are:
            values = (values / self.scale - self.mean) / self.std
        scores = self.model(values)
        return scores, torch.softmax(scores, dim=1)
