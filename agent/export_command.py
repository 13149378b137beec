"""`skiptrain-agent export`: the newest model in this device's journal, as a file that an application can use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from agent import __version__
from agent.config import AgentConfig
from agent.errors import AgentError, ConfigError, TrainingError
from agent.journal import SavedModel, read_model
from agent.learning.export import FORMATS, TOLERANCE, compare, require
from agent.learning.factory import describe
from agent.learning.learnt import Learnt
from agent.learning.sources import Request
from agent.learning.stored import STORED, Stored


def export(
    config: AgentConfig,
    format_: str,
    out: Path | None = None,
    *,
    force: bool = False,
    class_names: tuple[str, ...] = (),
) -> Iterator[str]:
    """Write the model that this device has learnt, prove the file, and yield what a person should read of it.

    The agent may be running meanwhile. Without `out` the file is named after fleet, run and round, in this folder;
    `class_names` win over the configuration's. AgentError where there is no such model, or no such file can be
    written; nothing is left behind then.
    """
    require(format_)
    saved = _newest(config)
    if saved.damaged:
        yield f"note: the newest model of {config.node.state_dir} is damaged: this is the one before"
    meaning = _meaning(config, class_names)
    if not meaning.classes:
        yield "note: nothing names the classes (data.class_names, --class-names): their numbers stand in for names"
    if config.data.source == "folder" and not (class_names or config.data.class_names):
        yield f"note: classes are named after today's folders in {config.data.path}: were they the same in training?"
    learnt = _learnt(config, saved, meaning)
    path = out or Path(f"{config.node.fleet}-{config.run.id}-r{saved.round}.{FORMATS[format_].suffix}")
    _check_target(path, force)
    written = FORMATS[format_].write(learnt)
    yield from (f"note: {text}" for text in written.notes)
    with _beside(path) as temporary:
        _write(temporary, path, written.content)
        found = compare(learnt, format_, temporary, written.metadata)
        _rename(temporary, path)
    yield (
        f"{path}: {format_}, run {config.run.id} after round {saved.round}, {saved.params.size} parameters, "
        f"{len(written.content)} bytes"
    )
    yield (
        f"checked with {found.runtime}: for {found.inputs} random inputs the scores are those of this device's own "
        f"model, to {found.difference:.1e} (allowed: {TOLERANCE:g})"
    )


def _newest(config: AgentConfig) -> SavedModel:
    """Return the newest model of the configured run; AgentError where there is none that was learnt."""
    folder, run = Path(config.node.state_dir), config.descriptor()
    saved = read_model(folder)
    if saved is None:
        raise AgentError(f"{folder}: no model of run {run.run_id} yet: the first is written after round 0")
    if saved.run != run.digest().hex():
        raise AgentError(
            f"{folder}: no model of run {run.run_id} as it is configured: the newest is of another one (its digest "
            f"{saved.run}, this one's {run.digest().hex()}); give the configuration that it ran with"
        )
    start = describe(run.model, run.seed).initial_params
    if saved.params.shape != start.shape:
        raise TrainingError(
            f"{folder}: the model of run {run.run_id} has {saved.params.size} parameters, model.name {run.model.name} "
            f"makes {start.size}: it is not what the run began with"
        )
    if np.array_equal(saved.params, start):
        raise AgentError(
            f"{folder}: no model of run {run.run_id} yet: what is there are the first weights, nothing is learnt"
        )
    return saved


def _meaning(config: AgentConfig, class_names: tuple[str, ...]) -> Stored:
    """Return what stored values and labels mean, from the data's own description; no samples are read."""
    data, model = config.data, config.model
    request = Request(data.path, "train", model.input_shape, data.layout, class_names or data.class_names)
    meaning = STORED[data.source](request)
    names = meaning.classes
    strange = [name for name in names if not name.strip() or names.count(name) > 1]
    if strange:
        raise ConfigError(f"names of classes must not be empty, or there twice: {', '.join(map(repr, strange))}")
    if names and len(names) != model.classes:
        raise ConfigError(
            f"{len(names)} names for the {model.classes} classes of the model ({', '.join(names)}): name all classes "
            "of the fleet, in order, with --class-names or data.class_names"
        )
    return meaning


def _learnt(config: AgentConfig, saved: SavedModel, meaning: Stored) -> Learnt:
    """Put model, meaning and origin together."""
    run = config.descriptor()
    about = {
        "agent_version": __version__,
        "fleet": config.node.fleet,
        "run": run.run_id,
        "run_digest": saved.run,
        "node": config.node.id,
        "round": str(saved.round),
    }
    names = meaning.classes or tuple(map(str, range(run.model.classes)))
    return Learnt(run.model, run.seed, saved.params, meaning.normalisation, names, about)


def _check_target(path: Path, force: bool) -> None:
    """Raise ConfigError where the file must not be written: found out before the work, not behind it."""
    try:
        folder, there = path.is_dir(), os.path.lexists(path)
    except OSError as error:
        raise AgentError(f"--out {path}: cannot be written: {error.strerror}") from None
    if folder:
        raise ConfigError(f"--out {path}: this is a folder; name a file")
    if there and not force:
        raise ConfigError(f"--out {path}: is there already; name another file, or replace it with --force")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, which nothing of that name outlives."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def _write(temporary: Path, path: Path, content: bytes) -> None:
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise AgentError(f"--out {path}: cannot be written: {error.strerror}") from None


def _rename(temporary: Path, path: Path) -> None:
    try:
        temporary.replace(path)
    except OSError as error:
        raise AgentError(f"--out {path}: cannot be replaced: {error.strerror}") from None
