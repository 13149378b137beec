"""ARCHITECTURE.md tells the truth: its tree, its arrows, and that the core stays light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "provisioning", "sim_harness")


def listed_modules() -> set[str]:
    """Return the .py files of the tree in ARCHITECTURE.md, as paths."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = text.partition("<!-- tree -->")[2].partition("<!-- end of tree -->")[0]
    folders: list[str] = []
    found = set()
    for line in tree.splitlines():
        match = re.match(r"(?P<indent> *)(?P<name>[\w.-]+)(?P<slash>/?)", line)
        if match is None:
            continue
        depth = len(match["indent"]) // 2
        folders = folders[:depth]
        if match["slash"]:
            folders.append(match["name"])
        elif match["name"].endswith(".py"):
            found.add("/".join([*folders, match["name"]]))
    return found


def test_the_tree_lists_exactly_the_modules_that_there_are() -> None:
    """Every module stands in the tree, and nothing else does."""
    real = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert listed_modules() == real


def test_the_arrows_between_packages_hold() -> None:
    """import-linter keeps the contracts of pyproject.toml."""
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("agent.core.round_machine", ("torch", "paho", "zeroconf", "yaml", "msgspec", "asyncio")),
        ("agent.device", ("torch", "PIL", "matplotlib", "rich", "amqtt")),
        ("agent.__main__", ("torch", "zeroconf", "paho")),
    ],
)
def test_heavy_libraries_stay_out_until_they_are_needed(module: str, absent: tuple[str, ...]) -> None:
    """In a fresh interpreter an import brings in none of what it must not."""
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_module_opens_with_a_caption() -> None:
    """The first line of each module says in one sentence what it is."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            assert re.match(r'""".+[^ ]', first), path
