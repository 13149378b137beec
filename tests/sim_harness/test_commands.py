"""The harness's command line where something around it is missing: extras, or a reader of its output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from agent.errors import OutputError
from sim_harness.__main__ import main
from tests.sim_harness.made_up_runs import scenario_of, write_run

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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    write_run(folder, scenario_of())
    summary = json.loads((folder / "summary.json").read_text())
    for entry in summary["per_node"]:
        entry.update(limit_j=None, spent_j=1.0)
    summary["messages"]["counted_by"] = "emulator"
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.mark.parametrize("arguments", [["report", "RUN"], ["compare", "RUN", "--out", "RUN"], ["grid", "--help"]])
def test_an_output_that_knows_no_greek_is_no_fault(arguments: list[str], finished: Path) -> None:
    """Where letters such as Γ cannot be printed, question marks are."""
    words = [sys.executable, "-m", "sim_harness", *(str(finished) if word == "RUN" else word for word in arguments)]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.isascii()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("report", "report.png"),
        ("compare", "compare.csv"),
        ("compare", "compare-bars.png"),
        ("compare", "compare.html"),
    ],
)
def test_a_full_disk_is_told_in_one_line(
    command: str, name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever file is the one that does not fit: EX_IOERR, the folder, and no traceback."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/full")
    more = ["--out", str(folder)] if command == "compare" else []
    assert main([command, str(folder), *more]) == OutputError.exit_code
    line = f"skiptrain-sim: {folder}: cannot be written: No space left on device; make room, or give another folder\n"
    assert capsys.readouterr().err == line


def test_output_to_a_full_disk_is_told_in_one_line() -> None:
    """What is printed may be what does not fit."""
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "sim_harness", "scenarios"]
        result = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    what = "what is printed, or a file of the run, cannot be written: No space left on device; make room"
    assert (result.returncode, result.stderr) == (OutputError.exit_code, f"skiptrain-sim: {what}\n")


def test_what_is_printed_to_a_file_is_not_cut_to_a_terminal(finished: Path) -> None:
    """Without a terminal there is room for the whole table and long names."""
    words = [sys.executable, "-m", "sim_harness", "report", str(finished)]
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    shown = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in shown.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["n001"]] == ["galaxy-s22-ultra"]


def test_a_plan_as_json_is_one_value(plain_install: Path) -> None:
    """What a program reads is JSON and nothing else."""
    assert json.loads(plain(plain_install, "plan", "demo", "--json").stdout)["scenario"] == "demo"
