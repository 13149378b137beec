"""The harness's command line where something around it is missing: extras, or a reader of its output."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRA = ("rich", "matplotlib", "amqtt")
PLAIN = "import sys; sys.path[:0] = sys.argv[1:3]; from sim_harness.__main__ import main; sys.exit(main(sys.argv[3:]))"


@pytest.fixture(scope="module")
def plain_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of all installed packages but those of the extra `sim`."""
    folder = tmp_path_factory.mktemp("packages")
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if item.name.partition("-")[0] not in EXTRA and item.suffix != ".pth":
            (folder / item.name).symlink_to(item)
    return folder


def plain(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `skiptrain-sim` with those packages only."""
    words = [sys.executable, "-S", "-c", PLAIN, str(packages), str(ROOT), *arguments]
    return subprocess.run(words, cwd=packages.parent, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["--help"], "usage:"), (["scenarios"], "paper-6-regular"), (["plan", "demo", "--json"], '"energy_wh"')],
)
def test_what_needs_no_extra_works_without_it(plain_install: Path, arguments: list[str], shown: str) -> None:
    """After `pip install skiptrain-agent` alone, help, the list of scenarios and the JSON of a plan are there."""
    result = plain(plain_install, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert shown in result.stdout


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["plan", "demo"], "rich"),
        (["report", "."], "rich, matplotlib"),
        (["compare", "."], "rich, matplotlib"),
        (["grid", "demo", "--out", "new"], "rich, matplotlib"),
        (["demo", "--out", "new"], "rich, matplotlib, amqtt"),
        (["live", "demo", "--out", "new", "--broker", "mosquitto"], "rich, matplotlib"),
    ],
)
def test_what_needs_the_extra_says_how_to_get_it(plain_install: Path, arguments: list[str], missing: str) -> None:
    """One line with the command, EX_CONFIG, and nothing has been started or written."""
    result = plain(plain_install, *arguments)
    line = f"skiptrain-sim: this needs {missing}: pip install 'skiptrain-agent[sim]'\n"
    assert (result.returncode, result.stdout, result.stderr) == (78, "", line)
    assert not (plain_install.parent / "new").exists()


@pytest.mark.parametrize("arguments", [["plan", "paper-6-regular", "--json"], ["plan", "demo"], ["scenarios"]])
def test_a_reader_that_leaves_is_no_fault(arguments: list[str]) -> None:
    """`... | head` ends the command without a traceback."""
    words = [sys.executable, "-m", "sim_harness", *arguments]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_plan_as_json_is_one_value(plain_install: Path) -> None:
    """What a program reads is JSON and nothing else."""
    assert json.loads(plain(plain_install, "plan", "demo", "--json").stdout)["scenario"] == "demo"
