"""fleet.yaml: one inventory for a whole fleet, without secrets, made to be kept in git."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.config import AgentConfig, problems
from agent.core.types import NODE_ID
from agent.yaml_file import Document

_RANGE = re.compile(r"(?P<head>[a-z0-9-]*)\[(?P<first>\d+)-(?P<last>\d+)\](?P<tail>[a-z0-9-]*)")
_MAX_RANGE = 100_000


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
    return [_config(document, inventory, name, i, entry, sorted(named)) for name, (i, entry) in named.items()]


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
        if not NODE_ID.fullmatch(name):
            raise document.error(where, f"{name!r} is no name: use a-z, 0-9 and single hyphens, at most 31 characters")
        yield name


def _config(  # noqa: PLR0917
    document: Document, inventory: Inventory, name: str, index: int, entry: NodeEntry, roster: list[str]
) -> AgentConfig:
    """Return one device's configuration: defaults, then what its entry sets, then its name and the roster."""
    values = _merged(inventory.defaults, entry.set)
    values = _merged(values, {"version": 1, "node": {"id": name, "fleet": inventory.fleet}, "run": {"roster": roster}})
    where = f"$.nodes[{index}]" if entry.set else "$.defaults"
    try:
        config = msgspec.convert(values, AgentConfig, strict=True)
    except msgspec.ValidationError as error:
        raise document.error(where, f"{name}: {error}") from None
    for path, message in problems(config):
        raise document.error(where, f"{name}: {message} (at {path.removeprefix('$.')})")
    return config


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` put over it, section by section."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
