"""The energy command on each tree and board: the right source, rail and watts, and where there are none, no zero."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config import NodeSection
from agent.energy.power_supply import DischargeReader
from agent.energy_config import CorrectionSection, EnergySection
from agent.journal import Journal
from tests.device_rig import device_config, write_config
from tests.energy import board_trees, trees
from tests.energy.command_rig import Caller, at_watts, moving, right, when_the_window_opens
from tests.energy.test_nvml import Driver
from tests.energy.trees import INTEL_RANGE_UJ, LAYOUTS, SHAPES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Caller:
    """Give what calls the command."""
    return Caller(capsys)


def path_with(folder: Path) -> str:
    """Return a PATH in which this folder comes first."""
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


STILL: dict[str, tuple[Callable[[Path], object], str, str, tuple[str, ...], float]] = {
    "Orin NX": (board_trees.orin_nx, "ina", "module rail", ("VDD_IN",), 30.3468),
    "AGX Orin": (
        board_trees.agx_orin,
        "ina",
        "module rail",
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        30.2944,
    ),
    "Thor": (board_trees.thor, "ina", "board", ("VIN",), 25.2),
    "INA219 HAT": (board_trees.ina_hat, "ina", "board", ("ina219",), 2.792),
    "Nano": (board_trees.jetson_nano, "jetson-iio", "module rail", ("POM_5V_IN",), 2.545),
    "Nano, older": (
        lambda sys: board_trees.jetson_nano(sys, "iio_device"),
        "jetson-iio",
        "module rail",
        ("POM_5V_IN",),
        2.545,
    ),
    "laptop": (board_trees.bat0, "power-supply", "battery", ("BAT0",), 4.21),
    "bq27441": (board_trees.bq27441, "power-supply", "battery", ("bq27441-0",), 0.549648),
}
"""Boards whose power stands still: tree, source, scope, rails, watts."""


@pytest.mark.parametrize("board", STILL)
def test_powers(tmp_path: Path, call: Caller, board: str) -> None:
    """Source, scope, rails and watts; one source, so it is the selected one."""
    build, source, scope, rails, watts = STILL[board]
    build(tmp_path)
    said = call(tmp_path)
    assert (said.code, said.err, said.page["selected"]) == (0, "", source)
    (row,) = said.page["sources"]
    assert (row["source"], row["scope"], tuple(row["rails"]), row["quality"]) == (source, scope, rails, "measured")
    assert right(row, watts), row
    assert set(row["rail_watts"]) == set(rails)


RAPL = {
    "desktop": ("package-0",),
    "psys first": ("package-0",),
    "multi-die": ("package-0-die-0", "package-0-die-1"),
    "two packages": ("package-0", "package-1"),
    "amd": ("package-0",),
    "dram subzone": ("package-0",),
    "dram at the top": ("package-0", "dram"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rapl_trees_that_move(tmp_path: Path, call: Caller, layout: str) -> None:
    """Each zone at 15 W: those that make up the total, once each. A thread moves them, so the watts are about right."""
    trees.rapl(tmp_path, LAYOUTS[layout])
    with moving(at_watts(tmp_path, 15.0)):
        said = call(tmp_path)
    assert (said.code, said.page["selected"]) == (0, "rapl")
    row = said.row("rapl")
    assert (row["scope"], tuple(row["rails"])) == ("package", RAPL[layout])
    assert right(row, 15.0 * len(RAPL[layout]), tolerance=10.0 * len(RAPL[layout])), row
    assert 0 < row["bound_j"] < row["joules"]


@pytest.mark.parametrize("shape", SHAPES)
def test_rapl_in_every_shape(tmp_path: Path, call: Caller, shape: str) -> None:
    """Links, flat folders, nested ones, copies, a twin through mmio: one package all the same."""
    trees.rapl(tmp_path)
    SHAPES[shape](tmp_path)
    with moving(at_watts(tmp_path, 15.0)):
        said = call(tmp_path)
    assert said.row("rapl")["rails"] == ["package-0"]
    assert right(said.row("rapl"), 15.0, tolerance=10.0)


def test_a_wrap_in_mid_window(tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the window it creeps towards its end, in the window it goes round: what is told is what was used."""
    folder = trees.rapl(tmp_path)
    mover, opened = trees.Mover(tmp_path), when_the_window_opens(monkeypatch)
    mover.set(INTEL_RANGE_UJ - 100_000, folder / "intel-rapl:0/energy_uj")
    turns_before: list[int] = []

    def go_on(seconds: float) -> None:
        if opened.is_set():
            turns_before.append(mover.turns.get("intel-rapl:0", 0))
        mover.move(round(15e6 * seconds) if opened.is_set() else 1)

    with moving(go_on):
        said = call(tmp_path)
    assert (turns_before[0], mover.turns["intel-rapl:0"]) == (0, 1)
    assert (said.code, said.page["selected"]) == (0, "rapl")
    assert right(said.row("rapl"), 15.0, tolerance=10.0), said.row("rapl")


def test_an_accumulator(tmp_path: Path, call: Caller) -> None:
    """An INA228's counter, of more than 32 bits."""
    energy = board_trees.ina228(tmp_path) / "energy1_input"

    def go_on(seconds: float) -> None:
        fresh = energy.with_name("fresh")
        fresh.write_text(f"{int(energy.read_text()) + round(2.792e6 * seconds)}\n")
        fresh.replace(energy)

    with moving(go_on):
        said = call(tmp_path)
    assert (said.page["selected"], said.row("ina")["rails"]) == ("ina", ["ina228"])
    assert right(said.row("ina"), 2.792, tolerance=1.8), said.row("ina")


@pytest.mark.parametrize(
    ("dump", "watts"),
    [(board_trees.PMIC_A, (10.799894, 12.954859)), (board_trees.PMIC_B, (3.507050, 4.603823))],
)
def test_the_pi_5(
    tmp_path: Path,
    call: Caller,
    monkeypatch: pytest.MonkeyPatch,
    dump: dict[str, tuple[str, str]],
    watts: tuple[float, float],
) -> None:
    """As the chip says it, and with the profile's correction for the whole board."""
    raw, corrected = watts
    board_trees.vcgencmd(tmp_path, board_trees.pmic_lines(dump))
    monkeypatch.setenv("PATH", path_with(tmp_path))
    said = call(tmp_path / "sys")
    assert (said.code, said.page["selected"]) == (0, "rpi-pmic")
    assert right(said.row("rpi-pmic"), raw, tolerance=1e-4)
    assert "raw_watts" not in said.row("rpi-pmic")
    said = call(tmp_path / "sys", "--profile", "raspberry-pi-5")
    row = said.row("rpi-pmic")
    assert right(row, corrected, tolerance=1e-4), row
    assert row["raw_watts"] == pytest.approx(raw, abs=1e-4)
    assert len(row["rail_watts"]) == 12


def test_a_correction_is_for_its_own_source(tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile's fit of the power chip says nothing about a HAT, whether that is selected or only beside it."""
    board_trees.vcgencmd(tmp_path, board_trees.pmic_lines(board_trees.PMIC_A))
    board_trees.ina_hat(tmp_path / "sys")
    monkeypatch.setenv("PATH", path_with(tmp_path))
    for words, selected in ((["--source", "ina"], "ina"), (["--source", "auto"], "ina"), ([], "rpi-pmic")):
        said = call(tmp_path / "sys", "--profile", "raspberry-pi-5", *words)
        assert (said.code, said.page["selected"]) == (0, selected)
        assert right(said.row("ina"), 2.792), said.row("ina")
        assert "raw_watts" not in said.row("ina")
        assert right(said.row("rpi-pmic"), 12.954859, tolerance=1e-4)


def test_a_correction_that_leaves_nothing_is_the_error_of_its_source(tmp_path: Path, call: Caller) -> None:
    """2.792 W less 50 W: that source has an error that names the offset, and no watts."""
    board_trees.ina_hat(tmp_path / "sys")
    offset = ("--set", "energy.correction.offset_w=-50", "--set", "energy.source=ina")
    said = call(tmp_path / "sys", *offset)
    assert said.code != 0
    row = said.row("ina")
    assert "correct its offset_w" in str(row["error"])
    assert row["watts"] is None


def test_all_that_are_there_are_shown(tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side over the same time; the best is selected, or the one that is named. A GPU is never a choice."""
    board_trees.ina_hat(tmp_path)
    board_trees.bat0(tmp_path)
    trees.rapl(tmp_path)
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    gpus = at_watts(tmp_path, 15.0)

    def go_on(seconds: float) -> None:
        gpus(seconds)
        driver.counters[0] = int(driver.counters[0]) + round(100e3 * seconds)  # type: ignore[call-overload]
        driver.counters[1] = int(driver.counters[1]) + round(50e3 * seconds)  # type: ignore[call-overload]

    with moving(go_on):
        said = call(tmp_path)
        assert said.page["selected"] == "ina"
        assert [row["source"] for row in said.page["sources"]] == ["ina", "rapl", "power-supply", "nvml"]
        assert {row["error"] for row in said.page["sources"]} == {None}
        lengths = [row["seconds"] for row in said.page["sources"]]
        assert max(lengths) - min(lengths) < min(lengths)
        assert call(tmp_path, "--source", "nvml").page["selected"] == "nvml"


def test_one_that_fails_does_not_hide_the_others(tmp_path: Path, call: Caller) -> None:
    """What stands still is no zero: it is said in its row, and the selected one is measured."""
    board_trees.ina_hat(tmp_path)
    trees.rapl(tmp_path)
    said = call(tmp_path)
    assert (said.code, said.page["selected"], said.err) == (0, "ina", "")
    row = said.row("rapl")
    assert "does not move" in row["error"]
    assert {row[key] for key in ("watts", "joules", "seconds", "coverage", "bound_j", "quality")} == {None}
    assert row["rail_watts"] == {}
    said = call(tmp_path, "--source", "rapl")
    assert (said.code, said.page["selected"]) == (72, None)
    assert right(said.row("ina"), 2.792)


def test_a_sensor_that_dies_in_the_window(tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is taken away as the window opens: the error stands in its row, and nothing else does."""
    folder, opened = trees.rapl(tmp_path), when_the_window_opens(monkeypatch)

    def go_on(seconds: float) -> None:
        if not opened.is_set():
            trees.Mover(tmp_path).move(round(15e6 * seconds))
        else:
            (folder / "intel-rapl:0/energy_uj").unlink(missing_ok=True)

    with moving(go_on):
        said = call(tmp_path)
    assert (said.code, said.page["selected"], said.row("rapl")["watts"]) == (72, None, None)
    assert said.err.startswith("skiptrain-agent: rapl: ")
    assert "energy_uj: is not there; check that the driver is loaded" in said.err


def broken(build: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return what builds a RAPL tree and then spoils it."""

    def make(sys: Path) -> None:
        trees.rapl(sys)
        build(sys / "devices/virtual/powercap/intel-rapl")

    return make


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (Path.mkdir, "no sensor of energy below"),
    "no such folder": (lambda _: None, "no sensor of energy below"),
    "no zones": (lambda sys: (sys / "class/powercap").mkdir(parents=True), "no sensor of energy below"),
    "no package": (lambda sys: trees.rapl(sys, (trees.PSYS,)), "RAPL has no package zone, only psys"),
    "standing still": (trees.rapl, "rapl: package-0: the energy counter does not move"),
    "empty": (broken(lambda at: (at / "intel-rapl:0/energy_uj").write_text("")), "energy_uj: is empty"),
    "garbage": (broken(lambda at: (at / "intel-rapl:0/energy_uj").write_text("#!\n")), "must be a whole number, not"),
    "off": (broken(lambda at: (at / "enabled").write_text("0\n")), "RAPL is switched off; write 1"),
    "HAT without load": (lambda sys: board_trees.ina_hat(sys, power_uw=0, curr_ma=0), "0 W, and yet the board runs"),
    "backwards": (lambda sys: board_trees.ina_hat(sys, curr_ma=-547), "the current runs backwards"),
    "coarse gauge": (board_trees.coarse_ups, "it can only be used as a gauge"),
    "charging": (lambda sys: board_trees.bat0(sys, status="Charging"), "charging: the battery's power says nothing"),
}


@pytest.mark.parametrize("tree", WRONG)
def test_wrong_trees(tmp_path: Path, call: Caller, tree: str) -> None:
    """One clear line, exit code 72, and no zero; the JSON is there all the same."""
    build, message = WRONG[tree]
    build(tmp_path / "sys")
    for json_ in (True, False):
        said = call(tmp_path / "sys", json_=json_)
        assert (said.code, said.err.count("\n")) == (72, 1)
        assert said.err.startswith("skiptrain-agent: ")
        assert message in said.err
        if json_:
            assert said.page["selected"] is None
            assert not [row for row in said.page["sources"] if row["watts"] is not None or not row["error"]]
        else:
            assert " 0.000" not in said.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("VCHI initialization failed\n", "put the service's user into the group video"),
        (board_trees.pmic_lines(board_trees.PMIC_A).replace("HDMI_A", "HDMX_A"), "it does not say HDMI_A"),
    ],
)
def test_a_pi_5_that_cannot_be_asked(
    tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """It is there, so nothing else is taken in its place."""
    board_trees.vcgencmd(tmp_path, text, exit_code=0)
    board_trees.bat0(tmp_path / "sys")
    monkeypatch.setenv("PATH", path_with(tmp_path))
    said = call(tmp_path / "sys")
    assert (said.code, said.page["selected"]) == (72, None)
    assert message in said.err
    assert right(said.row("power-supply"), 4.21)


def test_a_pi_4_has_none(tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its profile says so; an estimate has to be opted in, and is then called what it is."""
    board_trees.vcgencmd(tmp_path, 'error=1 error_msg="Command not registered"\n')
    monkeypatch.setenv("PATH", path_with(tmp_path))
    assert call(tmp_path / "sys").page == {"selected": None, "sources": []}
    said = call(tmp_path / "sys", "--profile", "raspberry-pi-4b")
    assert (said.code, said.page) == (72, {"selected": None, "sources": []})
    assert "opt in with --source estimate" in said.err
    assert "found here" not in said.err
    said = call(tmp_path / "sys", "--profile", "raspberry-pi-4b", "--source", "estimate")
    assert (said.code, said.page["selected"], said.row("estimate")["quality"]) == (0, "estimate", "estimated")
    assert 2.2 <= said.row("estimate")["watts"] <= 6.5
    said = call(tmp_path / "sys", "--source", "estimate")
    assert (said.code, said.row("estimate")["watts"]) == (72, None)
    assert "estimate: not known: idle_w and max_w" in said.err
    sets = [f"--set=energy.{key}" for key in ("idle_w=2", "max_w=4")]
    assert 1.99 <= call(tmp_path / "sys", "--source", "estimate", *sets).row("estimate")["watts"] <= 4.01


def test_a_sensor_that_the_profile_does_not_know_is_named(
    tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody put a HAT on a board that has none: it is shown, and how to take it said."""
    board_trees.vcgencmd(tmp_path, 'error=1 error_msg="Command not registered"\n')
    monkeypatch.setenv("PATH", path_with(tmp_path))
    board_trees.ina_hat(tmp_path / "sys")
    said = call(tmp_path / "sys", "--profile", "raspberry-pi-4b")
    assert (said.code, said.page["selected"]) == (72, None)
    assert said.err.endswith("; found here: ina: take it with --source ina (energy.source: ina)\n")
    assert right(said.row("ina"), 2.792)
    assert call(tmp_path / "sys", "--profile", "raspberry-pi-4b", "--source", "ina").page["selected"] == "ina"


def test_a_source_that_is_named_and_not_there(tmp_path: Path, call: Caller) -> None:
    """By a flag or by a profile: nothing else is taken, and what there is is shown."""
    board_trees.bat0(tmp_path)
    for words in (["--source", "ina"], ["--profile", "raspberry-pi-5-ina226"]):
        said = call(tmp_path, *words)
        assert (said.code, said.page["selected"]) == (72, None)
        assert "no INA sensor; load its overlay" in said.row("ina")["error"]
        assert "ina: " in said.err
        assert right(said.row("power-supply"), 4.21)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "rpl"], "--source: there is no 'rpl'; did you mean rapl?"),
        (["--source", "trace"], "--source: there is no 'trace'"),
        (["--profile", "rasberry-pi-5"], "did you mean raspberry-pi-5?"),
        (["--set", "energy.rails=[a, a]"], "--set energy.rails=[a, a]: a rail stands here twice"),
        (["--set", "node.id=a"], "unknown key `node`"),
        (["--config", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, call: Caller, words: list[str], message: str) -> None:
    """Said before anything is measured, with the nearest that there is."""
    said = call(tmp_path, *words)
    assert (said.code, said.out, said.err.count("\n")) == (78, "", 1)
    assert message in said.err


def test_a_configuration_counts_and_flags_win(tmp_path: Path, call: Caller) -> None:
    """Its energy section with rails and correction, its profile; and another source has rails of its own."""
    board_trees.agx_orin(tmp_path / "sys")
    board_trees.bat0(tmp_path / "sys")
    energy = EnergySection(
        source="ina",
        rails=("VDD_CPU_CV",),
        correction=CorrectionSection(slope=2.0, offset_w=1.0),
        sysfs_root=str(tmp_path / "sys"),
    )
    config = write_config(device_config(tmp_path, energy=energy), tmp_path / "agent.yaml")
    said = call.main("energy", "--config", config, "--seconds", "0.3", "--json")
    assert (said.code, said.page["selected"], said.row("ina")["rails"]) == (0, "ina", ["VDD_CPU_CV"])
    assert right(said.row("ina"), 2.0 * 7.6 + 1.0)
    assert said.row("ina")["raw_watts"] == pytest.approx(7.6, abs=1e-4)
    assert right(said.row("power-supply"), 4.21)
    said = call.main("energy", "--config", config, "--seconds", "0.3", "--json", "--source", "power-supply")
    assert (said.page["selected"], said.row("power-supply").get("raw_watts")) == ("power-supply", None)
    board_trees.ina_hat(tmp_path / "other")
    said = call(tmp_path / "other", "--config", str(config), "--set", "energy.rails=[]")
    assert said.row("ina")["raw_watts"] == pytest.approx(2.792, abs=1e-4)


def test_a_configuration_that_replays_shows_what_is_there(tmp_path: Path, call: Caller) -> None:
    """A trace and a phone's profile measure nothing: what the device could measure is looked for."""
    board_trees.bat0(tmp_path)
    for profile in ("", "poco-x3"):
        node = NodeSection(id="a", fleet="fleet", state_dir=str(tmp_path), profile=profile)
        config = write_config(device_config(tmp_path, node=node), tmp_path / "agent.yaml")
        said = call(tmp_path, "--config", str(config))
        assert (said.code, said.page["selected"]) == (0, "power-supply")


def test_beside_an_agent(tmp_path: Path, call: Caller) -> None:
    """It takes no lock: an agent that holds its journal and reads the same sensor is not in its way."""
    board_trees.ina_hat(tmp_path / "sys")
    config = device_config(tmp_path, energy=EnergySection(source="ina", sysfs_root=str(tmp_path / "sys")))
    journal = Journal(Path(config.node.state_dir))
    try:
        path = write_config(config, tmp_path / "agent.yaml")
        assert call(tmp_path / "sys", "--config", str(path)).code == 0
    finally:
        journal.close()


def test_the_table(tmp_path: Path, call: Caller) -> None:
    """For a person: the selected one is marked, and its rails stand below."""
    board_trees.agx_orin(tmp_path)
    board_trees.bat0(tmp_path, status="Charging")
    said = call(tmp_path, json_=False)
    head, ina, battery, *rest = said.out.splitlines()
    assert head.split() == [
        *("SOURCE", "SCOPE", "RAILS", "WATTS", "JOULES", "SECONDS", "QUALITY", "COVERAGE", "BOUND"),
    ]
    assert ina.startswith("* ina          module rail  3 rails")
    assert " 30.294 " in ina
    assert " measured  " in ina
    assert battery.startswith("  power-supply ")
    assert "unplug it" in battery
    assert [line.split() for line in rest[1:]] == [
        ["VDD_GPU_SOC", "15.206", "W"],
        ["VDD_CPU_CV", "7.600", "W"],
        ["VIN_SYS_5V0", "7.488", "W"],
    ]


def test_interrupted(tmp_path: Path, call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends it cleanly: 130, no traceback, and the sampler's thread is gone."""
    board_trees.bat0(tmp_path)
    looks: list[int] = []
    read = DischargeReader.read

    def read_and_stop(reader: DischargeReader) -> tuple[int, ...]:
        looks.append(1)
        if len(looks) == 4:
            raise KeyboardInterrupt
        return read(reader)

    monkeypatch.setattr(DischargeReader, "read", read_and_stop)
    said = call(tmp_path)
    assert (said.code, said.out, said.err) == (130, "", "")


def run(sys_: Path, *words: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    """Run the command as a process."""
    line = [sys.executable, "-m", "agent", "energy", "--sysfs-root", str(sys_), "--seconds", "0.3", *words]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_as_processes(tmp_path: Path) -> None:
    """A Pi 5, a RAPL tree that moves, and nothing at all."""
    board_trees.vcgencmd(tmp_path, board_trees.pmic_lines(board_trees.PMIC_A))
    done = run(tmp_path / "none", "--json", "--profile", "raspberry-pi-5", path=path_with(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert right(json.loads(done.stdout)["sources"][0], 12.954859, tolerance=1e-4)
    trees.rapl(tmp_path / "sys")
    with moving(at_watts(tmp_path / "sys", 15.0)):
        done = run(tmp_path / "sys")
    assert (done.returncode, done.stderr) == (0, "")
    assert "* rapl         package      package-0" in done.stdout
    done = run(tmp_path / "none")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (72, "", 1)
    assert done.stderr.startswith("skiptrain-agent: no sensor of energy below ")
