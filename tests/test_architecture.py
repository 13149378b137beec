"""ARCHITECTURE.md tells the truth: its tree, its arrows, and that the core stays light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import DiscoverySection, MqttSection
from sim_harness.mosquitto import free_port
from tests.device_rig import device_config, write_config

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


HEAVY = {
    *("torch", "PIL", "matplotlib", "rich", "amqtt", "pandas", "scipy", "pyJoules", "setuptools", "pkg_resources"),
    *("unittest", "doctest", "pdb", "multiprocessing", "sqlite3", "xml", "difflib", "importlib.resources"),
    *("numpy.testing", "numpy.ma", "numpy.polynomial", "numpy.fft", "numpy.f2py"),
}
"""Nothing of this does a waiting agent need; each takes memory that a small board then lacks for training."""
WAIT = """
import sys
from agent.config import load_config
from agent.device import open_daemon
daemon = open_daemon(load_config(sys.argv[1]))
daemon.stop("it has started")
print(daemon.run(), *sys.modules, sep="\\n")
"""


@pytest.mark.parametrize(("mdns", "more"), [(True, set[str]()), (False, {"zeroconf", "ifaddr", "asyncio"})])
def test_a_waiting_agent_has_loaded_nothing_heavy(tmp_path: Path, mdns: bool, more: set[str]) -> None:
    """It has read its configuration, drawn its first weights, and begun to look for its fleet and its broker."""
    discovery = DiscoverySection(mdns=mdns, interfaces=("127.0.0.1",) if mdns else ())
    mqtt = MqttSection(host="127.0.0.1", port=free_port())  # where nobody listens: it tries on for ever
    config = device_config(tmp_path, "a", ("a", "b"), discovery=discovery, mqtt=mqtt)
    words = [sys.executable, "-c", WAIT, str(write_config(config, tmp_path / "agent.yaml"))]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    ended, *modules = result.stdout.splitlines()
    assert ended == "it has started"
    assert {"numpy", "paho.mqtt.client"} <= set(modules)
    assert ("zeroconf" in modules) is mdns
    assert not (HEAVY | more) & set(modules)


def test_every_module_opens_with_a_caption() -> None:
    """The first line of each module says in one sentence what it is."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            assert re.match(r'""".+[^ ]', first), path
