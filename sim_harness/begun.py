"""What an emulation that is to go on was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from agent.errors import ConfigError, DataError
from sim_harness import checkpoint
from sim_harness.alike import data_digest
from sim_harness.cohort.engine import Corpus, Engine
from sim_harness.comparison import differences, within
from sim_harness.distributed import World
from sim_harness.folders import looked_at
from sim_harness.outcome import settings_of
from sim_harness.scenario import Scenario, dump_scenario, load_scenario

_MAY_DIFFER = ("engine.workers",)
"""They change no number."""
_BITS: Final = ("kind", "precision", "isa", "compiler", "nodes_a_stack", "device")
"""What of that which an engine tells its bits depend on; not all engines tell all."""
_WHAT_TO_DO: Final = {
    "data": "put back what data.path held, or begin anew in another --out",
    "engine": "go on where it was begun, with the same compiler, or begin anew in another --out",
}


def with_choice(scenario: Scenario, engine: Engine) -> Scenario:
    """Return the scenario with what `engine.kind: auto` has chosen, so that the run can go on, and be repeated."""
    if scenario.engine.kind != "auto":
        return scenario
    chosen = engine.describe()
    settings = replace(scenario.engine, kind=chosen["kind"], precision=chosen["precision"])
    return replace(scenario, engine=settings)


def begun(scenario: Scenario, out: Path, world: World | None) -> Scenario:
    """Return the scenario begun in `out`; ConfigError unless there is a checkpoint of it, by as many processes."""
    if looked_at((out / "summary.json").exists):
        raise ConfigError(f"--resume: {out} holds a finished run; `skiptrain-sim report {out}` shows it")
    written_by = looked_at(lambda: checkpoint.processes(out / "checkpoint"))
    size = world.size if world else 1
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


def identity(scenario: Scenario, corpus: Corpus, engine: Engine) -> dict[str, str]:
    """Return all that a run's numbers depend on, for its checkpoint: settings, data, and what `default` came to."""
    about = engine.describe()
    settings = dump_scenario(replace(scenario, engine=replace(scenario.engine, workers=0)))
    return {
        "scenario": settings,
        "data": data_digest(corpus),
        "engine": ", ".join(str(about[key]) for key in _BITS if key in about),
    }


def check_identity(place: Path, there: object, here: Mapping[str, str]) -> None:
    """Raise where a checkpoint is of another run: DataError for another scenario, ConfigError for all else."""
    if not isinstance(there, dict) or there.get("scenario") != here["scenario"]:
        raise DataError(f"{place}: this is the checkpoint of another scenario than the scenario.yaml beside it")
    for name, what_to_do in _WHAT_TO_DO.items():
        if there.get(name) != here[name]:
            raise ConfigError(
                f"--resume: {place} was written with another {name} ({there.get(name)}) than there is now "
                f"({here[name]}), and would not come to the same end: {what_to_do}"
            )
