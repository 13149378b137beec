"""The tree of JetPack 4: milliwatts by label, each chip once."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.energy import jetson_iio
from agent.energy.source import AbsentError, Scope, Wanted
from agent.errors import EnergyError
from tests.energy import board_trees as trees

NOTHING = Wanted()


def find(root: Path, wanted: Wanted = NOTHING) -> jetson_iio.IioReader:
    """Find a reader."""
    return jetson_iio.find(trees.place(root), wanted)


@pytest.mark.parametrize("folder", ["iio:device0", "iio_device"])
def test_nano(tmp_path: Path, folder: str) -> None:
    """2.545 W, from milliwatts; older board support packages call the folder iio_device."""
    trees.jetson_nano(tmp_path / "sys", folder)
    reader = find(tmp_path)
    assert (reader.rails, reader.scope, reader.read()) == (("POM_5V_IN",), Scope.MODULE, (2_545_000,))
    assert (reader.hz, reader.resolution_uw()) == (10.0, 0)


def test_a_unit_behind_the_number(tmp_path: Path) -> None:
    """Some of these files end with their unit."""
    folder = trees.jetson_nano(tmp_path / "sys")
    (folder / "in_power0_input").write_text("2545 mw\n")
    (folder / "in_current0_input").write_text("506 ma\n")
    assert find(tmp_path).read() == (2_545_000,)


def test_without_a_power(tmp_path: Path) -> None:
    """The voltage times the current: 5.032 V x 506 mA."""
    folder = trees.jetson_nano(tmp_path / "sys")
    (folder / "in_power0_input").unlink()
    assert find(tmp_path).read() == (2_546_192,)


def test_tx2_adds_its_carrier_board(tmp_path: Path) -> None:
    """VDD_IN and VDD_MUX sit on two chips of one bus, beside parts of both."""
    chips = {
        "0-0041/iio:device1": ("VDD_IN", "VDD_SYS_CPU", "VDD_SYS_DDR"),
        "0-0042/iio:device2": ("VDD_MUX", "VDD_5V0_IO_SYS", "VDD_3V3_SYS"),
    }
    for chip, names in chips.items():
        values: dict[str, object] = {}
        for number, name in enumerate(names):
            values |= {f"rail_name_{number}": name, f"in_power{number}_input": 4000 + number}
            values |= {f"in_current{number}_input": 210}
        trees.fill(tmp_path / "sys/bus/i2c/drivers/ina3221x" / chip, values)
    reader = find(tmp_path)
    assert (reader.rails, reader.scope) == (("VDD_IN", "VDD_MUX"), Scope.BOARD)
    assert reader.read() == (4_000_000, 4_000_000)


def test_named_rails(tmp_path: Path) -> None:
    """And the message where one is not there."""
    trees.jetson_nano(tmp_path / "sys")
    assert find(tmp_path, Wanted(rails=("POM_5V_CPU",))).read() == (549_000,)
    with pytest.raises(EnergyError, match="no rail VDD_IN; there are POM_5V_CPU, POM_5V_GPU, POM_5V_IN"):
        find(tmp_path, Wanted(rails=("VDD_IN",)))


def test_absent(tmp_path: Path) -> None:
    """No tree; and an iio device that is something else."""
    with pytest.raises(AbsentError, match="JetPack 4"):
        find(tmp_path)
    trees.fill(tmp_path / "sys/bus/i2c/devices/1-0048/iio:device0", {"name": "ads1015", "in_voltage0_raw": 5})
    with pytest.raises(AbsentError, match="JetPack 4"):
        find(tmp_path)


def test_two_rails_of_one_name(tmp_path: Path) -> None:
    """Neither is guessed."""
    trees.jetson_nano(tmp_path / "sys")
    trees.fill(tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0041/iio:device1", {"rail_name_0": "POM_5V_IN"})
    with pytest.raises(EnergyError, match="a second rail POM_5V_IN"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["rail_name_0", "in_power0_input", "in_current0_input"])
def test_unreadable(tmp_path: Path, name: str) -> None:
    """A folder in place of a file."""
    folder = trees.jetson_nano(tmp_path / "sys")
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(EnergyError, match=f"{name}: cannot be read"):
        find(tmp_path)


def test_a_total_that_falls_to_nothing(tmp_path: Path) -> None:
    """In mid-run it is an error, as at the start; a rail that was named may be idle."""
    folder = trees.jetson_nano(tmp_path / "sys")
    reader, named = find(tmp_path), find(tmp_path, Wanted(rails=("POM_5V_IN",)))
    (folder / "in_power0_input").write_text("0\n")
    with pytest.raises(EnergyError, match="POM_5V_IN: 0 W, and yet the board runs"):
        reader.read()
    assert named.read() == (0,)


@pytest.mark.parametrize("text", [None, "", "ma 506\n", "?\n"])
def test_vanishing_and_garbage(tmp_path: Path, text: str | None) -> None:
    """Between two readings."""
    folder = trees.jetson_nano(tmp_path / "sys")
    reader = find(tmp_path)
    (folder / "in_power0_input").unlink()
    if text is not None:
        (folder / "in_power0_input").write_text(text)
    with pytest.raises(EnergyError, match="in_power0_input"):
        reader.read()
