"""docs/configuration.md lists every key of agent.yaml, docs/scenarios.md those of a scenario; both with defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from agent.config import AgentConfig
from sim_harness.partition.registry import PARTITIONS
from sim_harness.scenario import Scenario, shipped

DOCS = Path(__file__).parents[1] / "docs"
SCENARIOS = (DOCS / "scenarios.md").read_text(encoding="utf-8")


def keys_of(config: type[msgspec.Struct]) -> dict[str, object]:
    """Return every key of a file with its default; NODEFAULT where it must be given."""
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


@pytest.mark.parametrize(("page", "config"), [("configuration.md", AgentConfig), ("scenarios.md", Scenario)])
def test_every_key_is_documented_with_its_default(page: str, config: type[msgspec.Struct]) -> None:
    """The table has each key once; plain defaults stand there as they are."""
    text = (DOCS / page).read_text(encoding="utf-8").rpartition("| key | default |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \|([^|]*)\|", text, re.MULTILINE)
    keys = keys_of(config)
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


def test_every_scenario_and_partition_is_documented() -> None:
    """The first table of the page names all shipped scenarios, the last but one all ways of dealing out."""
    rows = [re.findall(r"`([a-z0-9-]+)`", row.split("|")[1]) for row in SCENARIOS.splitlines() if row.startswith("| `")]
    names = {name for row in rows for name in row}
    assert shipped().keys() <= names
    assert PARTITIONS.keys() <= names
