"""`skiptrain-provision render`: from one inventory to every device's agent.yaml, or to the place of the mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import load_config
from agent.errors import ConfigError
from provisioning.__main__ import main
from provisioning.inventory import load_inventory

ROOT = Path(__file__).parents[2]
INVENTORY = """\
version: 1
fleet: lab
defaults:
  run: {id: first, rounds: 100}
  model: {name: small-cnn, input_shape: [1, 8, 8], classes: 10}
  data: {source: digits}
  learning: {lr: 0.2, local_steps: 5}
nodes:
  - range: "n[008-010]"
  - id: jetson
    host: "{id}.lab.example"
    set: {energy: {device: poco-x3}, learning: {local_steps: 7}}
"""


def write(folder: Path, text: str = INVENTORY) -> Path:
    """Write an inventory and return its path."""
    path = folder / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def render(folder: Path) -> int:
    """Render `folder`/fleet.yaml to `folder`/out; return the exit code."""
    return main(["render", "--inventory", str(folder / "fleet.yaml"), "--out", str(folder / "out")])


def files_of(folder: Path) -> dict[str, bytes]:
    """Return all files below `folder`/out."""
    out = folder / "out"
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_every_device_of_an_inventory_gets_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranges keep their leading zeros; nothing else is written, and one line says what was done."""
    write(tmp_path)
    assert render(tmp_path) == 0
    names = ["jetson", "n008", "n009", "n010"]
    assert list(files_of(tmp_path)) == [f"nodes/{name}/agent.yaml" for name in names]
    assert capsys.readouterr().out == f"4 devices, 4 files written to {tmp_path}/out/nodes\n"


def test_what_is_rendered_is_what_an_agent_loads(tmp_path: Path) -> None:
    """Each file passes the agent's own check, and holds name, fleet, the whole roster and the defaults."""
    write(tmp_path)
    render(tmp_path)
    for name in ("jetson", "n008", "n009", "n010"):
        config = load_config(tmp_path / "out" / "nodes" / name / "agent.yaml")
        assert (config.node.id, config.node.fleet) == (name, "lab")
        assert config.run.roster == ("jetson", "n008", "n009", "n010")
        assert (config.run.id, config.run.rounds, config.learning.lr) == ("first", 100, 0.2)


def test_what_a_device_sets_wins_key_by_key(tmp_path: Path) -> None:
    """`set` changes its keys and leaves the other defaults of the same section; other devices keep the defaults."""
    configs = {config.node.id: config for config in load_inventory(write(tmp_path))}
    own, other = configs["jetson"], configs["n008"]
    assert (own.energy.device, own.learning.local_steps, own.learning.lr) == ("poco-x3", 7, 0.2)
    assert (other.energy.device, other.learning.local_steps) == ("xiaomi-12-pro", 5)


def test_all_devices_are_in_the_same_run(tmp_path: Path) -> None:
    """Their run descriptors are equal, so that their messages are accepted by each other."""
    digests = {config.descriptor().digest() for config in load_inventory(write(tmp_path))}
    assert len(digests) == 1


def test_a_second_render_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unchanged inventory changes no file, not even its time."""
    write(tmp_path)
    render(tmp_path)
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files_of(tmp_path)}
    capsys.readouterr()
    assert render(tmp_path) == 0
    assert capsys.readouterr().out.startswith("4 devices, 0 files written")
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files_of(tmp_path)} == before


def test_only_what_changed_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One device's setting costs one file."""
    write(tmp_path)
    render(tmp_path)
    capsys.readouterr()
    write(tmp_path, INVENTORY.replace("local_steps: 7", "local_steps: 8"))
    assert render(tmp_path) == 0
    assert capsys.readouterr().out.startswith("4 devices, 1 files written")
    assert load_config(tmp_path / "out" / "nodes" / "jetson" / "agent.yaml").learning.local_steps == 8


def test_equal_inventories_give_equal_bytes(tmp_path: Path) -> None:
    """Two folders rendered from the same text are identical, whatever the order in which nodes are listed."""
    head, nodes = INVENTORY.split("nodes:\n")
    first, second = nodes.split("  - id: jetson")
    for name, text in (("a", INVENTORY), ("b", INVENTORY), ("c", f"{head}nodes:\n  - id: jetson{second}{first}")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, text)
        render(tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") == files_of(tmp_path / "c")


def test_a_fleet_of_256(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A range makes a whole fleet, whose every file lists all of it."""
    write(tmp_path, INVENTORY.replace("n[008-010]", "edge-[000-254]-lab"))
    assert render(tmp_path) == 0
    assert capsys.readouterr().out.startswith("256 devices, 256 files written")
    config = load_config(tmp_path / "out" / "nodes" / "edge-254-lab" / "agent.yaml")
    assert len(config.run.roster) == 256


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1", "version: 2", "1:1: Expected `int` <= 1"),
        ("fleet: lab", "fleet: Lab", "2:1: 'Lab' is no name"),
        ("fleet: lab\n", "", "1:1: the key `fleet` is missing"),
        ("nodes:", "hosts:", "8:1: unknown key `hosts`"),
        ("rounds: 100", "rounds: 0", "4:20: n008: Expected `int` >= 1"),
        ("lr: 0.2", "lr: fast", "7:14: n008: Expected `float`, got `str`"),
        ("lr: 0.2", "rate: 0.2", "7:14: unknown key `rate`"),
        ("  data: {source: digits}\n", "", "3:1: the key `data` is missing"),
        ("small-cnn", "smal-cnn", "5:11: n008: there is no 'smal-cnn'; did you mean small-cnn?"),
        ("source: digits", "source: npz", "6:3: n008: data.source npz needs data.path"),
        ("rounds: 100", "roster: [n008], rounds: 100", "4:20: n008: this is made from the inventory"),
        ("rounds: 100", "expect_nodes: 9, rounds: 100", "4:20: n008: the roster has 4 nodes; leave expect_nodes out"),
        ("local_steps: 7", "local_steps: 0", "12:49: jetson: Expected `int` >= 1"),
        ("local_steps: 7", "steps: 7", "12:49: unknown key `steps`"),
        ("device: poco-x3", "device: poco", "12:11: jetson: energy: no published row for cifar10/poco"),
        ("energy: {device: poco-x3}", "energy: 3", "12:11: jetson: Expected `object`, got `int`"),
        ("energy: {device: poco-x3}", "node: {id: other}", "12:18: jetson: this is made from the inventory"),
        ("energy: {device: poco-x3}", "run: {seed: 2}", "12:5: jetson would be in another run than n008"),
        ("    set: {energy", "    sets: {energy", "12:5: unknown key `sets`"),
        ("id: jetson", "id: n009", "10:5: n009 is named a second time"),
        ("id: jetson", "id: Jetson", "10:5: 'Jetson' is no name"),
        ("id: jetson", "id: jetson\n    range: n[1-2]", "10:5: give either `id` or `range`"),
        ('range: "n[008-010]"', "host: somewhere", "9:5: give either `id` or `range`"),
        ("n[008-010]", "n[010-008]", "9:5: 'n[010-008]' is no range such as n[000-255]"),
        ("n[008-010]", "n[0-99999999]", "9:5: 'n[0-99999999]' is no range such as n[000-255]"),
        ("n[008-010]", "n[a-c]", "9:5: 'n[a-c]' is no range such as n[000-255]"),
        ("n[008-010]", "-n[1-2]", "9:5: '-n1' is no name"),
    ],
)
def test_a_mistake_is_found_at_its_place(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """EX_CONFIG, one line with file:line:column of what the operator wrote, and not a single file."""
    assert old in INVENTORY
    write(tmp_path, INVENTORY.replace(old, new, 1))
    assert render(tmp_path) == 78
    said = capsys.readouterr()
    assert said.err.startswith(f"skiptrain-provision: {tmp_path}/fleet.yaml:{message}")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_an_inventory_that_is_not_there(tmp_path: Path) -> None:
    """The error names the path."""
    with pytest.raises(ConfigError, match=r"fleet\.yaml: cannot be read"):
        load_inventory(tmp_path / "fleet.yaml")


def test_a_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where --out is a file: EX_CONFIG, and the file stays."""
    write(tmp_path)
    (tmp_path / "out").write_text("mine")
    assert render(tmp_path) == 78
    assert f"--out {tmp_path}/out: " in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_reader_that_leaves_is_no_fault(tmp_path: Path) -> None:
    """The files are written, and no traceback tells of a closed pipe."""
    write(tmp_path)
    words = [sys.executable, "-m", "provisioning", "render", "-i", str(tmp_path / "fleet.yaml"), "--out"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*words, str(tmp_path / "out")], cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
    assert len(files_of(tmp_path)) == 4
