"""fleet.yaml: one inventory for a whole fleet, without secrets, made to be kept in git."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.config import AgentConfig, name_problem, problems
from agent.errors import ConfigError
from agent.yaml_file import Document, place_and_message

_RANGE = re.compile(r"(?P<head>[a-z0-9-]*)\[(?P<first>\d+)-(?P<last>\d+)\](?P<tail>[a-z0-9-]*)")
_MAX_RANGE = 100_000
_MADE_HERE = ("$.version", "$.node.id", "$.node.fleet", "$.run.roster")
"""What the inventory itself decides for each device."""


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device, or a range of them: `{id: n000}` or `{range: "n[000-255]"}`; `set` wins over the defaults."""

    id: str = ""
    range: str = ""
    host: str = ""
    """Where it is reached, `{id}` standing for its name; kept for deployment."""
    set: dict[str, Any] = {}


class Inventory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file as it is written."""

    version: Annotated[int, Meta(ge=1, le=1)]
    fleet: str
    defaults: dict[str, Any]
    """Sections of agent.yaml that every device gets; `run.roster` is made from the nodes."""
    nodes: Annotated[tuple[NodeEntry, ...], Meta(min_length=1)]


def load_inventory(path: Path) -> list[AgentConfig]:
    """Return the checked configuration of every device, in the order of the file; ConfigError says what is wrong."""
    document = Document.read(path)
    inventory = document.to(Inventory)
    named: dict[str, tuple[int, NodeEntry]] = {}
    for i, entry in enumerate(inventory.nodes):
        for name in _names(document, i, entry):
            if name in named:
                raise document.error(f"$.nodes[{i}]", f"{name} is named a second time here")
            named[name] = (i, entry)
    if problem := name_problem(inventory.fleet):
        raise document.error("$.fleet", problem)
    configs = [_config(document, inventory, name, i, entry, sorted(named)) for name, (i, entry) in named.items()]
    return _one_run(document, configs, [i for i, _ in named.values()])


def _names(document: Document, index: int, entry: NodeEntry) -> Iterator[str]:
    where = f"$.nodes[{index}]"
    if bool(entry.id) == bool(entry.range):
        raise document.error(where, "give either `id` or `range`")
    names = [entry.id]
    if entry.range:
        match = _RANGE.fullmatch(entry.range)
        if match is None or not int(match["first"]) <= int(match["last"]) < _MAX_RANGE:
            raise document.error(f"{where}.range", f"{entry.range!r} is no range such as n[000-255]")
        width = len(match["first"])
        numbers = range(int(match["first"]), int(match["last"]) + 1)
        names = [f"{match['head']}{number:0{width}d}{match['tail']}" for number in numbers]
    for name in names:
        if problem := name_problem(name):
            raise document.error(where, problem)
        yield name


def _config(  # noqa: PLR0917
    document: Document, inventory: Inventory, name: str, index: int, entry: NodeEntry, roster: list[str]
) -> AgentConfig:
    """Return one device's configuration: defaults, then what its entry sets, then its name and the roster."""
    given = _merged(inventory.defaults, entry.set)
    for path in _MADE_HERE:
        if _holds(given, path):
            raise _error(document, entry, index, path, f"{name}: this is made from the inventory; remove it")
    made = {"version": 1, "node": {"id": name, "fleet": inventory.fleet}, "run": {"roster": roster}}
    try:
        config = msgspec.convert(_merged(given, made), AgentConfig, strict=True)
    except msgspec.ValidationError as error:
        path, message = place_and_message(error)
        raise _error(document, entry, index, path, f"{name}: {message}") from None
    for path, message in problems(config):
        raise _error(document, entry, index, path, f"{name}: {message}")
    return config


def _one_run(document: Document, configs: list[AgentConfig], entries: list[int]) -> list[AgentConfig]:
    """Return `configs` if all of them describe the same run, which they must to find each other."""
    for config, index in zip(configs, entries, strict=True):
        if config.descriptor() != configs[0].descriptor():
            raise document.error(
                f"$.nodes[{index}].set",
                f"{config.node.id} would be in another run than {configs[0].node.id}: run, policy, topology and model "
                "are the same on all devices; put them into defaults",
            )
    return configs


def _error(document: Document, entry: NodeEntry, index: int, path: str, message: str) -> ConfigError:
    """Return the error at the place in the inventory that `path` of a device's configuration comes from."""
    unknown = re.search(r"unknown field `(.*)`$", message)
    own = _holds(entry.set, f"{path}.{unknown[1]}" if unknown else path)
    return document.error((f"$.nodes[{index}].set" if own else "$.defaults") + path.removeprefix("$"), message)


def _holds(values: object, path: str) -> bool:
    """Say whether nested dicts have `path` (`$.run.roster`)."""
    for part in path.partition("[")[0].split(".")[1:]:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return path != "$"


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` put over it, section by section."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
