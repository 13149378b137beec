"""What an emulation that is to go on was begun with."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from agent.errors import ConfigError
from sim_harness import checkpoint
from sim_harness.cohort.engine import Engine
from sim_harness.comparison import differences, within
from sim_harness.distributed import World
from sim_harness.outcome import settings_of
from sim_harness.scenario import Scenario, dump_scenario, load_scenario

_MAY_DIFFER = ("engine.workers",)
"""They change no number."""


def with_choice(scenario: Scenario, engine: Engine) -> Scenario:
    """Return the scenario with what `engine.kind: auto` has chosen, so that the run can go on, and be repeated."""
    if scenario.engine.kind != "auto":
        return scenario
    chosen = engine.describe()
    settings = replace(scenario.engine, kind=chosen["kind"], precision=chosen["precision"])
    return replace(scenario, engine=settings)


def begun(scenario: Scenario, out: Path, world: World | None) -> Scenario:
    """Return the scenario begun in `out`; ConfigError unless there is a checkpoint of it, by as many processes."""
    if (out / "summary.json").exists():
        raise ConfigError(f"--resume: {out} holds a finished run; `skiptrain-sim report {out}` shows it")
    written_by, size = checkpoint.processes(out / "checkpoint"), world.size if world else 1
    if not written_by:
        raise ConfigError(
            f"--resume: {out} holds no checkpoint; to begin anew leave --resume out and give a new folder"
        )
    if size not in written_by:
        raise ConfigError(
            f"--resume: the checkpoint in {out} is one of {written_by[0]} process(es), not of {size}; start as many"
        )
    if world is not None and world.rank:
        return scenario  # the first process looks; whether all have the same one is asked afterwards
    path = out / "scenario.yaml"
    before = load_scenario(str(path))
    wanted = replace(scenario, engine=before.engine) if scenario.engine.kind == "auto" else scenario
    there, given = (settings_of(dump_scenario(one), str(path)) for one in (before, wanted))
    keys = [key for key in differences(there, given) if not within(key, _MAY_DIFFER)]
    if keys:
        what = ", ".join(f"{key} {there.get(key)}, not {given.get(key)}" for key in keys[:3])
        raise ConfigError(f"--resume: {path} is another scenario: {what}; give the settings that it was begun with")
    return replace(before, engine=replace(before.engine, workers=scenario.engine.workers))


def identity(scenario: Scenario) -> str:
    """Return all settings that a run's numbers depend on, for its checkpoint."""
    return dump_scenario(replace(scenario, engine=replace(scenario.engine, workers=0)))
