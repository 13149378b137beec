"""The Raspberry Pi 5's power chip: two published dumps to the microwatt, and each way the command can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.energy import rpi_pmic
from agent.energy.source import AbsentError, Scope, Wanted
from agent.errors import EnergyError
from tests.energy import board_trees as trees

NOTHING = Wanted()
LINES = trees.pmic_lines(trees.PMIC_B)


def find(root: Path, wanted: Wanted = NOTHING) -> rpi_pmic.PmicReader:
    """Find a reader."""
    return rpi_pmic.find(trees.place(root), wanted)


@pytest.mark.parametrize(
    ("dump", "total_uw", "core_uw", "wifi_uw"),
    [(trees.PMIC_A, 10_799_894, 9_761_433, 0), (trees.PMIC_B, 3_507_050, 1_370_706, 439_907)],
)
def test_published_dumps(
    tmp_path: Path, dump: dict[str, tuple[str, str]], total_uw: int, core_uw: int, wifi_uw: int
) -> None:
    """All twelve rails, paired by name."""
    trees.vcgencmd(tmp_path, trees.pmic_lines(dump))
    reader = find(tmp_path)
    powers_uw = dict(zip(reader.rails, reader.read(), strict=True))
    assert (len(powers_uw), sum(powers_uw.values()), reader.scope) == (12, total_uw, Scope.BOARD)
    assert powers_uw["VDD_CORE"] == pytest.approx(core_uw, abs=1)
    assert powers_uw["3V7_WL_SW"] == wifi_uw
    assert (reader.hz, reader.idle_hz, reader.resolution_uw()) == (4.0, 0.1, 0)


def test_named_rails(tmp_path: Path) -> None:
    """The Wi-Fi alone is no board; a rail that is not there is named with those that are."""
    trees.vcgencmd(tmp_path, LINES)
    reader = find(tmp_path, Wanted(rails=("3V7_WL_SW",), hz=2.0))
    assert (reader.rails, reader.read(), reader.scope, reader.hz) == (("3V7_WL_SW",), (439_907,), Scope.MODULE, 2.0)
    with pytest.raises(EnergyError, match=r"no rail WLAN; there are 3V7_WL_SW, .*; correct energy\.rails"):
        find(tmp_path, Wanted(rails=("WLAN",)))


@pytest.mark.parametrize("exit_code", [0, 255])
def test_a_board_without_the_command(tmp_path: Path, exit_code: int) -> None:
    """A Pi 4: the text says so, the exit code need not."""
    trees.vcgencmd(tmp_path, 'error=1 error_msg="Command not registered"\n', exit_code)
    with pytest.raises(AbsentError, match="does not measure its power"):
        find(tmp_path)


def test_no_binary(tmp_path: Path) -> None:
    """Another computer."""
    with pytest.raises(AbsentError, match="vcgencmd: there is no such command"):
        find(tmp_path)


def test_exit_127(tmp_path: Path) -> None:
    """A wrapper that did not find what it wraps."""
    trees.vcgencmd(tmp_path, "vcgencmd: not found\n", 127)
    with pytest.raises(AbsentError, match="vcgencmd: not found"):
        find(tmp_path)


def test_not_to_be_started(tmp_path: Path) -> None:
    """A file without the right to run it."""
    trees.vcgencmd(tmp_path, LINES).chmod(0o644)
    with pytest.raises(EnergyError, match="cannot be started: Permission denied"):
        find(tmp_path)


def test_no_rights_for_the_device(tmp_path: Path) -> None:
    """A user who is not in the group."""
    trees.vcgencmd(tmp_path, "Can't open device file: /dev/vcio\nTry creating a device file\n", 255)
    with pytest.raises(EnergyError, match="group video") as raised:
        find(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("says", "exit_code"), [("", 1), (LINES, 3), ('error=2 error_msg="Invalid arguments"\n', 0)])
def test_another_failure(tmp_path: Path, says: str, exit_code: int) -> None:
    """Numbers with an error are no numbers."""
    trees.vcgencmd(tmp_path, says, exit_code)
    with pytest.raises(EnergyError, match=f"failed with {exit_code}"):
        find(tmp_path)


def test_a_firmware_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is ended; the next look starts it again."""
    trees.hanging_vcgencmd(tmp_path)
    monkeypatch.setattr(rpi_pmic, "TIMEOUT_S", 0.02)
    with pytest.raises(EnergyError, match=r"no answer within 0\.02 s"):
        find(tmp_path)


@pytest.mark.parametrize("lost", ["HDMI_A", "VDD_CORE_V"])
def test_one_rail_missing(tmp_path: Path, lost: str) -> None:
    """Without a rail there is no total: the reader that knew it says so too."""
    trees.vcgencmd(tmp_path, LINES)
    reader = find(tmp_path)
    trees.vcgencmd(tmp_path, "\n".join(line for line in LINES.splitlines() if lost not in line) + "\n")
    for read in (reader.read, lambda: find(tmp_path)):
        with pytest.raises(EnergyError, match=f"does not say {lost}, so there is no total"):
            read()


@pytest.mark.parametrize(
    "garbage",
    [
        "VDD_CORE_A current(7)=infA",
        "VDD_CORE_A current(7)=1.5V",
        "VDD_CORE_A volt(7)=1.5A",
        "VDD_CORE_A current(7)=123456A",
        "VDD_CORE_A current(7)=",
        "\x1b[31mVDD_CORE",
    ],
)
def test_garbage(tmp_path: Path, garbage: str) -> None:
    """A line that is no rail is shown, in one line that a terminal can bear."""
    lines = [garbage if "VDD_CORE_A" in line else line for line in LINES.splitlines()]
    trees.vcgencmd(tmp_path, "\n".join(lines) + "\n")
    with pytest.raises(EnergyError, match="VDD_CORE") as raised:
        find(tmp_path)
    assert str(raised.value).isprintable()


def test_vanishing(tmp_path: Path) -> None:
    """The command is taken away between two looks."""
    path = trees.vcgencmd(tmp_path, LINES)
    reader = find(tmp_path)
    path.unlink()
    with pytest.raises(EnergyError, match="no such command"):
        reader.read()


def test_an_offset_below_zero_is_zero(tmp_path: Path) -> None:
    """A rail without load takes nothing from the others."""
    trees.vcgencmd(tmp_path, trees.pmic_lines(trees.PMIC_B | {"HDMI": ("-0.00100000", "4.90440000")}))
    powers_uw = find(tmp_path).read()
    assert (min(powers_uw), sum(powers_uw)) == (0, 3_507_050 - 83_836)


def test_a_total_of_nothing(tmp_path: Path) -> None:
    """From the start or in mid-run; a rail that was named may be idle."""
    path = trees.vcgencmd(tmp_path, LINES)
    reader, named = find(tmp_path), find(tmp_path, Wanted(rails=("HDMI",)))
    path.unlink()
    trees.vcgencmd(
        tmp_path, trees.pmic_lines({rail: ("0.00000000", volts) for rail, (_, volts) in trees.PMIC_B.items()})
    )
    for ask in (reader.read, lambda: find(tmp_path)):
        with pytest.raises(EnergyError, match="pmic_read_adc: 0 W, and yet the board runs"):
            ask()
    assert named.read() == (0,)
