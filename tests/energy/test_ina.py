"""INA sensors: the right total for each board, to the milliwatt, and what is said where there is none."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.energy import ina
from agent.energy.jetson_rails import TOTALS
from agent.energy.sampler import Sampler
from agent.energy.source import AbsentError, Scope, Wanted
from agent.errors import EnergyError
from tests.energy import board_trees as trees
from tests.energy.clock import Clock

NOTHING = Wanted()


def power(root: Path, wanted: Wanted = NOTHING) -> ina.InaPower:
    """Find a reader of power."""
    reader = ina.find(trees.place(root), wanted)
    assert isinstance(reader, ina.InaPower)
    return reader


@pytest.mark.parametrize(
    ("board", "rails", "watts", "scope"),
    [
        (trees.orin_nx, ("VDD_IN",), 30.346_8, Scope.MODULE),
        (trees.agx_orin, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 30.294_4, Scope.MODULE),
        (trees.thor, ("VIN",), 25.2, Scope.BOARD),
        (trees.ina_hat, ("ina219",), 2.792, Scope.BOARD),
    ],
)
def test_the_total_of_a_board(
    tmp_path: Path, board: Callable[[Path], object], rails: tuple[str, ...], watts: float, scope: Scope
) -> None:
    """Parts, shunt sums, channels without a load and rails that are fed from others do not count."""
    board(tmp_path / "sys")
    reader = power(tmp_path)
    assert (reader.rails, reader.scope, reader.hz) == (rails, scope, 10.0)
    assert sum(reader.read()) == round(watts * 1e6)


@pytest.mark.parametrize("total", TOTALS, ids=lambda total: "+".join(total.rails))
def test_every_total_is_found_by_its_labels(tmp_path: Path, total: Any) -> None:
    """Three rails a chip; each rail draws 1 W and 1, 2, 3, ... mW."""
    for number in range(0, len(total.rails), 3):
        rails = [(name, 1000, 1001 + number + more) for more, name in enumerate(total.rails[number : number + 3])]
        spare = [("NC", 0, 0)] * (3 - len(rails))
        values = trees.channels(*rails, *spare, shunt_uohm=5000)
        trees.hwmon(tmp_path / "sys", "ina3221", f"0-004{number}", number, values)
    reader = power(tmp_path)
    assert (reader.rails, reader.scope) == (total.rails, total.scope)
    assert reader.read() == tuple(1_001_000 + 1000 * number for number in range(len(total.rails)))


def test_rails_may_be_named(tmp_path: Path) -> None:
    """In the order that they are named in; parts of a module."""
    trees.orin_nx(tmp_path / "sys")
    reader = power(tmp_path, Wanted(rails=("VDD_SOC", "VDD_CPU_GPU_CV"), hz=20.0))
    assert (reader.rails, reader.scope, reader.hz) == (("VDD_SOC", "VDD_CPU_GPU_CV"), Scope.MODULE, 20.0)
    assert reader.read() == (5_096_256, 16_586_496)


@pytest.mark.parametrize(("rails", "what"), [(("VDD_OUT",), "no rail VDD_OUT"), (("VDD_IN", "VDD_IN"), "twice")])
def test_named_rails_must_be_there_and_once(tmp_path: Path, rails: tuple[str, ...], what: str) -> None:
    """The message lists those that are there, without those of shunts."""
    trees.orin_nx(tmp_path / "sys")
    with pytest.raises(EnergyError, match=what) as raised:
        power(tmp_path, Wanted(rails=rails))
    assert "sum of shunt" not in str(raised.value)


def test_a_rail_and_what_feeds_it(tmp_path: Path) -> None:
    """Each for itself, never their sum."""
    trees.agx_orin(tmp_path / "sys")
    assert power(tmp_path, Wanted(rails=("VDDQ_VDD2_1V8AO",))).read() == (3_494_400,)
    with pytest.raises(EnergyError, match="VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0"):
        power(tmp_path, Wanted(rails=("VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")))


def test_channels_without_a_load_are_no_rails(tmp_path: Path) -> None:
    """NC is no name."""
    trees.agx_orin(tmp_path / "sys")
    with pytest.raises(EnergyError, match="there are VDDQ_VDD2_1V8AO, VDD_CPU_CV, VDD_GPU_SOC, VIN_SYS_5V0;"):
        power(tmp_path, Wanted(rails=("NC",)))


def test_no_total_is_guessed(tmp_path: Path) -> None:
    """Two HATs without labels: named by their addresses, and the operator says which ones add up."""
    trees.ina_hat(tmp_path / "sys")
    trees.hwmon(tmp_path / "sys", "ina2xx", "1-0041", 6, {"name": "ina219", "curr1_input": 10, "power1_input": 50_000})
    with pytest.raises(EnergyError, match=r"there are ina219@1-0040, ina219@1-0041; set energy\.rails"):
        power(tmp_path)
    reader = power(tmp_path, Wanted(rails=("ina219@1-0041",)))
    assert (reader.read(), reader.scope) == ((50_000,), Scope.BOARD)


def test_a_copied_tree_counts_once(tmp_path: Path) -> None:
    """Without links: the same hwmon stands in class, below the bus and below the driver."""
    trees.agx_orin(tmp_path / "linked/sys")
    shutil.copytree(tmp_path / "linked/sys/class", tmp_path / "sys/class", ignore=shutil.ignore_patterns("device"))
    shutil.copytree(tmp_path / "linked/sys/bus", tmp_path / "sys/bus", ignore=shutil.ignore_patterns("device"))
    assert sum(power(tmp_path).read()) == 30_294_400


def test_only_the_driver_shows_the_sensor(tmp_path: Path) -> None:
    """A tree without class/hwmon, and with a hwmon that is something else."""
    trees.orin_nx(tmp_path / "sys")
    shutil.rmtree(tmp_path / "sys/class")
    trees.fill(tmp_path / "sys/class/hwmon/hwmon0", {"name": "cpu_thermal", "temp1_input": 48000})
    assert sum(power(tmp_path).read()) == 30_346_800


def test_the_resolution_is_a_step_of_the_shunt(tmp_path: Path) -> None:
    """40 µV over 5 mOhm are 8 mA, at 5.016 V; a chip whose steps are not known says 0."""
    trees.orin_nx(tmp_path / "sys")
    reader = power(tmp_path)
    assert (reader.resolution_uw(), reader.shunt_ohms) == (40_128, (0.005,))


def test_the_shunt_that_the_driver_reckons_with_is_shown(tmp_path: Path) -> None:
    """So that a doctor can tell 10 mOhm from 100 mOhm."""
    trees.ina_hat(tmp_path / "sys", shunt_resistor=10_000)
    reader = power(tmp_path)
    assert (reader.resolution_uw(), reader.shunt_ohms) == (0, (0.01,))


def test_an_accumulator_is_used(tmp_path: Path) -> None:
    """In microjoules, beyond 32 bits; going back is a reset."""
    folder = trees.ina228(tmp_path / "sys")
    reader = ina.find(trees.place(tmp_path), NOTHING)
    assert isinstance(reader, ina.InaCounter)
    assert (reader.rails, reader.scope, reader.ranges_uj) == (("ina228",), Scope.BOARD, (0,))
    assert reader.read() == (123_456_789_012,)
    (folder / "energy1_input").write_text("17\n")
    assert reader.read() == (17,)


@pytest.mark.parametrize("current_ma", [-3, -20])
def test_an_offset_below_zero_is_zero(tmp_path: Path, current_ma: int) -> None:
    """A rail without load, whose sensor is a step or two off; the power has no sign."""
    folder = trees.ina_hat(tmp_path / "sys")
    reader = power(tmp_path, Wanted(rails=("ina219",)))
    (folder / "curr1_input").write_text(f"{current_ma}\n")
    (folder / "power1_input").write_text("15000\n")
    assert reader.read() == (0,)


def test_a_charging_battery_is_no_zero(tmp_path: Path) -> None:
    """A UPS's sensor sits at the battery: while that charges, nobody knows what the board draws."""
    folder = trees.ina_hat(tmp_path / "sys")
    reader = power(tmp_path)
    (folder / "curr1_input").write_text("-350\n")
    with pytest.raises(EnergyError, match=r"ina219: the current runs backwards \(-350 mA\)"):
        reader.read()


def test_a_sensor_that_nothing_flows_through(tmp_path: Path) -> None:
    """The HAT is there, and the board is fed past it."""
    trees.ina_hat(tmp_path / "sys", power_uw=0, curr_ma=0)
    with pytest.raises(EnergyError, match="0 W, and yet the board runs"):
        power(tmp_path)


def test_a_total_that_falls_to_nothing_is_no_total(tmp_path: Path) -> None:
    """Fed past the sensor in mid-run: for two seconds the last power goes on, and then nobody may train by it."""
    folder, clock = trees.ina_hat(tmp_path / "sys"), Clock()
    sampler = Sampler(power(tmp_path), clocks=clock.clocks())
    named = power(tmp_path, Wanted(rails=("ina219",)))
    (folder / "power1_input").write_text("0\n")
    clock.pass_s(2)
    assert sampler.now().sums.energy_uj == (5_584_000,)
    clock.pass_s(5)
    with pytest.raises(EnergyError, match=r"no reading for 7\.0 s .*ina219: 0 W, and yet the board runs"):
        sampler.now()
    assert named.read() == (0,)


def test_channels_that_are_switched_off_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their switch; or, with older drivers, because the hardware has no data for them."""
    folder = trees.orin_nx(tmp_path / "sys")
    (folder / "in2_enable").write_text("0\n")
    _fails_at(monkeypatch, folder / "in3_input", errno.ENODATA)
    with pytest.raises(EnergyError, match="there are VDD_IN;"):
        power(tmp_path, Wanted(rails=("VDD_SOC",)))


@pytest.mark.parametrize("tree", [(), ("class/hwmon",), ("class/hwmon/hwmon0",), ("bus/i2c/drivers/ina3221/1-0040",)])
def test_absent(tmp_path: Path, tree: tuple[str, ...]) -> None:
    """No tree, an empty one, or a hwmon that does not say what it is."""
    for folder in tree:
        (tmp_path / "sys" / folder).mkdir(parents=True)
    with pytest.raises(AbsentError, match="no INA sensor"):
        power(tmp_path)


@pytest.mark.parametrize("name", ["in1_input", "curr1_input"])
def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file without rights, and one that is a folder: the message names it."""
    path = trees.orin_nx(tmp_path / "sys") / name
    with monkeypatch.context() as patch:
        _fails_at(patch, path, errno.EACCES)
        with pytest.raises(EnergyError, match=f"{name}: may not be read"):
            power(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(EnergyError, match=f"{name}: cannot be read"):
        power(tmp_path)


@pytest.mark.parametrize("text", ["", "nan\n", "5016.5\n", "\0\0\0", "0x12\n"])
def test_garbage(tmp_path: Path, text: str) -> None:
    """What is no whole number is no reading."""
    folder = trees.orin_nx(tmp_path / "sys")
    reader = power(tmp_path)
    (folder / "in1_input").write_text(text)
    with pytest.raises(EnergyError, match="in1_input"):
        reader.read()


@pytest.mark.parametrize(("board", "name"), [(trees.orin_nx, "curr1_input"), (trees.ina228, "energy1_input")])
def test_vanishing(tmp_path: Path, board: Callable[[Path], Path], name: str) -> None:
    """The driver is taken away between two readings, and comes back."""
    folder = board(tmp_path / "sys")
    reader = ina.find(trees.place(tmp_path), NOTHING)
    before, text = reader.read(), (folder / name).read_text()
    (folder / name).unlink()
    with pytest.raises(EnergyError, match=f"{name}: is not there"):
        reader.read()
    (folder / name).write_text(text)
    assert reader.read() == before


def _fails_at(monkeypatch: pytest.MonkeyPatch, path: Path, code: int) -> None:
    """Let opening `path` fail, by whichever way it is reached."""
    whole = Path.open

    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.resolve() == path.resolve():
            raise OSError(code, "injected")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
