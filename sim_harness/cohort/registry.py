"""The registry of engines, and which one a scenario gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from sim_harness.cohort.engine import Corpus, Engine, Learning
from sim_harness.cohort.native import NativeEngine
from sim_harness.cohort.sequential import open_sequential
from sim_harness.scenario_sections import EngineSection

Maker: TypeAlias = Callable[[Corpus, Learning, EngineSection], Engine]
"""From data, what is learnt and the scenario's section `engine` to an engine.

ConfigError where this machine or this model cannot have it, with what is missing.
"""

ENGINES: Final[dict[str, Maker]] = {
    "sequential": open_sequential,
    "native": NativeEngine,
}


def open_engine(corpus: Corpus, learning: Learning, settings: EngineSection) -> Engine:
    """Return the engine that the settings name, or that fits model and CPU; ConfigError."""
    kind = "sequential" if settings.kind in {"default", "auto"} else settings.kind
    return ENGINES[kind](corpus, learning, settings)
