"""Battery gauges: how full, how much, and when their power says something about the board."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.energy import power_supply
from agent.energy.power_supply import Battery, gauge
from agent.energy.source import AbsentError, Scope, Wanted
from agent.errors import EnergyError
from tests.energy import board_trees as trees

NOTHING = Wanted()


def find(root: Path, wanted: Wanted = NOTHING) -> power_supply.DischargeReader:
    """Find a reader of the discharge."""
    return power_supply.find(trees.place(root), wanted)


def read(root: Path) -> Battery:
    """Read the gauge, which is there."""
    battery = gauge(trees.place(root))
    assert battery is not None
    return battery


def test_a_laptop(tmp_path: Path) -> None:
    """Energy and power as such."""
    trees.bat0(tmp_path / "sys")
    trees.supply(tmp_path / "sys", "AC", type="Mains", online=0)
    energy_uj, full_uj = 15_900_000 * 3600, 19_240_000 * 3600
    assert read(tmp_path) == Battery(0.83, energy_uj, full_uj, charging=False, power_uw=4_210_000, on_mains=False)
    reader = find(tmp_path)
    assert (reader.rails, reader.scope, reader.read()) == (("BAT0",), Scope.BATTERY, (4_210_000,))


def test_a_gauge_of_charge(tmp_path: Path) -> None:
    """Charge times voltage; the current's sign is the gauge's own affair."""
    folder = trees.bq27441(tmp_path / "sys")
    for current_ua in (-132_000, 132_000):
        (folder / "current_now").write_text(f"{current_ua}\n")
        battery = read(tmp_path)
        assert (battery.share, battery.energy_uj, battery.power_uw) == (0.97, 6_362_592 * 3600, 549_648)
        assert battery.full_uj == 6_808_140 * 3600
        assert find(tmp_path).read() == (549_648,)


def test_a_gauge_without_percent(tmp_path: Path) -> None:
    """The share is that of the energy, and never more than all."""
    folder = trees.bat0(tmp_path / "sys")
    (folder / "capacity").unlink()
    assert read(tmp_path).share == pytest.approx(0.8264, abs=1e-4)
    (folder / "energy_now").write_text("19500000\n")
    assert read(tmp_path).share == 1.0


def test_a_ups_with_percent_only(tmp_path: Path) -> None:
    """Good for a stop in time, and for nothing else."""
    trees.coarse_ups(tmp_path / "sys")
    assert read(tmp_path) == Battery(0.64, None, None, charging=False, power_uw=None, on_mains=False)
    with pytest.raises(EnergyError, match="it can only be used as a gauge"):
        find(tmp_path)


def test_two_batteries_are_one(tmp_path: Path) -> None:
    """Energies and powers add up, and the larger one counts more in the share; None where one does not know."""
    trees.bat0(tmp_path / "sys", capacity=80, energy_now=8_000_000, energy_full=10_000_000)
    other = trees.supply(
        tmp_path / "sys",
        "BAT1",
        type="Battery",
        status="Not charging",
        capacity=20,
        power_now=0,
        energy_now=6_000_000,
        energy_full=30_000_000,
    )
    battery = read(tmp_path)
    assert (battery.energy_uj, battery.full_uj) == (14_000_000 * 3600, 40_000_000 * 3600)
    assert battery.share == pytest.approx(0.35)
    assert battery.power_uw == 4_210_000
    assert find(tmp_path).read() == (4_210_000, 0)
    assert find(tmp_path, Wanted(rails=("BAT0",))).rails == ("BAT0",)
    (other / "energy_full").unlink()
    assert read(tmp_path).full_uj is None
    assert read(tmp_path).share == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["Mains", "USB", "USB_PD"])
def test_charging(tmp_path: Path, kind: str) -> None:
    """What goes in is below zero; it is no reading of the board, and no zero either."""
    folder = trees.bat0(tmp_path / "sys")
    trees.supply(tmp_path / "sys", "charger", type=kind, online=1)
    reader = find(tmp_path)
    (folder / "status").write_text("Charging\n")
    battery = read(tmp_path)
    assert (battery.charging, battery.power_uw, battery.on_mains) == (True, -4_210_000, True)
    with pytest.raises(EnergyError, match="charging: the battery's power says nothing about the board"):
        reader.read()


@pytest.mark.parametrize("status", ["Full", "Not charging", "Unknown", None])
def test_a_battery_that_feeds_nothing(tmp_path: Path, status: str | None) -> None:
    """Nor one that does not say which way its power flows."""
    folder = trees.bat0(tmp_path / "sys")
    reader = find(tmp_path)
    (folder / "status").write_text(f"{status}\n")
    if status is None:
        (folder / "status").unlink()
    assert read(tmp_path).power_uw is None
    with pytest.raises(EnergyError, match="does not feed the board"):
        reader.read()


def test_no_power_while_discharging(tmp_path: Path) -> None:
    """A gauge that has not measured yet."""
    folder = trees.bat0(tmp_path / "sys")
    reader = find(tmp_path)
    (folder / "power_now").write_text("0\n")
    with pytest.raises(EnergyError, match="no power while it discharges"):
        reader.read()


def test_absent(tmp_path: Path) -> None:
    """Nothing; mains alone; a mouse; a bay without its battery."""
    for make in (
        lambda sys: sys.mkdir(),
        lambda sys: trees.supply(sys, "AC", type="Mains", online=1),
        lambda sys: trees.supply(sys, "hid-mouse", type="Battery", scope="Device", capacity=5, status="Discharging"),
        lambda sys: trees.supply(sys, "BAT1", type="Battery", present=0),
    ):
        make(tmp_path / "sys")
        assert gauge(trees.place(tmp_path)) is None
        with pytest.raises(AbsentError, match="no battery gauge"):
            find(tmp_path)


@pytest.mark.parametrize("name", ["type", "capacity", "energy_now", "power_now", "status"])
def test_unreadable(tmp_path: Path, name: str) -> None:
    """A folder in place of a file: named, whatever it is."""
    folder = trees.bat0(tmp_path / "sys")
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(EnergyError, match=f"{name}: cannot be read"):
        gauge(trees.place(tmp_path))


@pytest.mark.parametrize(
    ("name", "text"),
    [("capacity", "250"), ("capacity", "-1"), ("energy_now", "-5"), ("energy_full", "?"), ("present", "")],
)
def test_garbage(tmp_path: Path, name: str, text: str) -> None:
    """Numbers that cannot be."""
    folder = trees.bat0(tmp_path / "sys")
    (folder / name).write_text(text)
    with pytest.raises(EnergyError, match=f"{folder}"):
        gauge(trees.place(tmp_path))


def test_vanishing(tmp_path: Path) -> None:
    """The battery is pulled out between two readings."""
    folder = trees.bat0(tmp_path / "sys")
    reader = find(tmp_path)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(EnergyError, match="BAT0"):
        reader.read()
