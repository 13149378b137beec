"""The registry of engines, and which one a scenario gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from agent.errors import ConfigError
from sim_harness.cohort.engine import Corpus, Engine, Learning
from sim_harness.cohort.native import NativeEngine
from sim_harness.cohort.probe import fastest
from sim_harness.cohort.sequential import open_sequential
from sim_harness.cohort.stacked import open_stacked
from sim_harness.scenario_sections import EngineSection

Maker: TypeAlias = Callable[[Corpus, Learning, EngineSection], Engine]
"""From data, what is learnt and the scenario's section `engine` to an engine.

ConfigError where this machine or this model cannot have it, with what is missing.
"""

ENGINES: Final[dict[str, Maker]] = {
    "native": NativeEngine,
    "stacked": open_stacked,
    "sequential": open_sequential,
}
"""In the order in which `default` asks for them: the first that can serve model and machine is taken."""


def open_engine(
    corpus: Corpus, learning: Learning, settings: EngineSection, say: Callable[[str], None] = lambda _: None
) -> Engine:
    """Return the engine that the settings name, or that fits model and machine; ConfigError.

    `default` depends on nothing but model shape, CPU features and whether there is a C compiler; `say` is told why a
    faster engine is not taken.
    """
    if settings.kind == "default":
        return _first(corpus, learning, settings, say)
    if settings.kind == "auto":
        return fastest(ENGINES, corpus, learning, settings)
    if settings.kind not in ENGINES:
        raise ConfigError(f"engine.kind: this release has no engine {settings.kind!r}; use one of {', '.join(ENGINES)}")
    return ENGINES[settings.kind](corpus, learning, settings)


def _first(corpus: Corpus, learning: Learning, settings: EngineSection, say: Callable[[str], None]) -> Engine:
    reasons = []
    for make in ENGINES.values():
        try:
            engine = make(corpus, learning, settings)
        except ConfigError as error:  # noqa: PERF203  the next one may do
            reasons.append(str(error))
        else:
            for reason in reasons:
                say(f"not the fastest engine: {reason}")
            return engine
    raise ConfigError("engine: none can do this: " + "; ".join(reasons))
