"""docs/configuration.md lists every key of agent.yaml, and its defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec

from agent.config import AgentConfig

PAGE = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")


def keys_of(config: type[msgspec.Struct]) -> dict[str, object]:
    """Return every key of agent.yaml with its default; NODEFAULT where it must be given."""
    found: dict[str, object] = {}
    for part in msgspec.structs.fields(config):
        sections = [kind for kind in (part.type, *get_args(part.type)) if _is_section(kind)]
        if sections:
            found |= {f"{part.name}.{name}": default for name, default in keys_of(sections[0]).items()}
        else:
            found[part.name] = part.default
    return found


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def test_every_key_is_documented_with_its_default() -> None:
    """The table has each key once; plain defaults stand there as they are."""
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \|([^|]*)\|", PAGE, re.MULTILINE)
    keys = keys_of(AgentConfig)
    assert [name for name, _ in rows] == list(keys)
    for name, shown in rows:
        default = keys[name]
        if default is msgspec.NODEFAULT:
            assert shown.strip() == "", name
        elif isinstance(default, bool):
            assert shown.strip() == str(default).lower(), name
        elif isinstance(default, int | float) and name != "run.expect_nodes":
            assert float(shown) == default, name
        elif isinstance(default, str) and default:
            assert shown.strip() == f"`{default}`", name
