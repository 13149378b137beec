"""RAPL: which zones make up the total in every tree that kernels have, and what stands in the way elsewhere."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from agent.energy import rapl
from agent.energy.rapl import RaplReader, find
from agent.energy.source import AbsentError, Place, Scope, Wanted
from agent.errors import EnergyError
from tests.energy import trees
from tests.energy.trees import LAYOUTS, SHAPES, Mover, Zone

TOTALS = {
    "desktop": {"package-0": 262143328000},
    "psys first": {"package-0": 262143328000},
    "multi-die": {"package-0-die-0": 1000, "package-0-die-1": 2000},
    "two packages": {"package-0": 1000, "package-1": 2000},
    "amd": {"package-0": 65532610000},
    "dram subzone": {"package-0": 1000},
    "dram at the top": {"package-0": 1000, "dram": 52000111},
}


def asked(sys: Path, *rails: str) -> RaplReader:
    """Find what is below `sys`."""
    return find(Place(sys=sys), Wanted(rails=rails))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_total_is_all_packages_once(tmp_path: Path, layout: str, shape: str) -> None:
    """However the tree is laid out, and however often the same zone stands in it."""
    if shape == "twin" and "package-0" not in TOTALS[layout]:
        layout = "desktop"
    trees.rapl(tmp_path, LAYOUTS[layout])
    SHAPES[shape](tmp_path)
    reader = asked(tmp_path)
    assert dict(zip(reader.rails, reader.read(), strict=True)) == TOTALS[layout]
    assert reader.scope is Scope.PACKAGE


def test_a_twin_alone_is_used(tmp_path: Path) -> None:
    """Some kernels offer the package through mmio only."""
    trees.with_twin(tmp_path)
    assert asked(tmp_path).rails == ("package-0",)


def test_range_and_resolution_are_the_hardwares(tmp_path: Path) -> None:
    """A counter begins anew one behind its greatest value; 32 bits make 62 microjoules of a desktop's unit of 61.04."""
    trees.rapl(tmp_path / "intel")
    trees.rapl(tmp_path / "amd", LAYOUTS["amd"])
    intel, amd = asked(tmp_path / "intel"), asked(tmp_path / "amd")
    assert (intel.ranges_uj, intel.resolution_uj) == ((262143328851,), 62)
    assert (amd.ranges_uj, amd.resolution_uj) == ((65532610988,), 16)


def test_psys_only_when_asked(tmp_path: Path) -> None:
    """It is the whole board, and on some machines nonsense."""
    trees.rapl(tmp_path, LAYOUTS["psys first"])
    reader = asked(tmp_path, "psys")
    assert (reader.rails, reader.scope, reader.read()) == (("psys",), Scope.BOARD, (990000000,))


@pytest.mark.parametrize(
    ("layout", "rails", "labels"),
    [
        ("desktop", ("core",), ("core",)),
        ("desktop", ("package-0/core", "uncore"), ("core", "uncore")),
        ("two packages", ("package-1", "package-1/dram"), ("package-1", "package-1/dram")),
        ("two packages", ("intel-rapl:0:1",), ("package-0/dram",)),
        ("dram subzone", ("package-0", "dram"), ("package-0", "dram")),
        ("dram at the top", ("dram",), ("dram",)),
        ("desktop", ("core", "core"), ("core",)),
    ],
)
def test_zones_by_name(tmp_path: Path, layout: str, rails: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """Whoever names zones gets those, each once."""
    trees.rapl(tmp_path, LAYOUTS[layout])
    assert asked(tmp_path, *rails).rails == labels


@pytest.mark.parametrize(
    ("layout", "rails", "message"),
    [
        ("desktop", ("gpu",), "no zone gpu, only package-0, core, uncore, psys; correct energy.rails"),
        ("two packages", ("core",), "several RAPL zones are called core; write package-0/core or package-1/core in"),
        ("desktop", ("package-0", "core"), "package-0 holds what the other zones count"),
        ("desktop", ("package-0", "psys"), "psys holds what the other zones count"),
    ],
)
def test_names_that_are_not_clear(tmp_path: Path, layout: str, rails: tuple[str, ...], message: str) -> None:
    """An error says what to write."""
    trees.rapl(tmp_path, LAYOUTS[layout])
    with pytest.raises(EnergyError, match=message):
        asked(tmp_path, *rails)


def test_ids_are_hexadecimal(tmp_path: Path) -> None:
    """The eleventh package is intel-rapl:a."""
    trees.rapl(tmp_path, tuple(Zone(f"package-{number}", number) for number in range(12)))
    assert asked(tmp_path).read() == tuple(range(12))


def test_packages_of_one_name_are_told_by_their_id(tmp_path: Path) -> None:
    """Early kernels called every die of a package the same."""
    trees.rapl(tmp_path, (Zone("package-0", 1), Zone("package-0", 2)))
    assert asked(tmp_path).rails == ("intel-rapl:0", "intel-rapl:1")


def test_an_empty_file_is_waited_for_a_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is an error that names the file."""
    folder = trees.rapl(tmp_path)
    reader = asked(tmp_path)
    monkeypatch.setattr("agent.energy.sysfs.time.sleep", lambda _: None)
    (folder / "intel-rapl:0/energy_uj").write_text("")
    with pytest.raises(EnergyError, match="intel-rapl:0/energy_uj: is empty"):
        reader.read()


@pytest.mark.parametrize("content", ["garbage", "12.5", "N/A"])
def test_garbage(tmp_path: Path, content: str) -> None:
    """The error names file and content."""
    folder = trees.rapl(tmp_path)
    (folder / "intel-rapl:0/energy_uj").write_text(content)
    with pytest.raises(
        EnergyError, match=f"energy_uj: the energy of package-0 must be a whole number, not '{content}'"
    ):
        asked(tmp_path)


@pytest.mark.parametrize("content", [None, "0\n", "-5\n", "much\n"])
def test_no_range_no_reader(tmp_path: Path, content: str | None) -> None:
    """Without it a wrap could not be told from a reset."""
    file = trees.rapl(tmp_path) / "intel-rapl:0/max_energy_range_uj"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(EnergyError, match="max_energy_range_uj: "):
        asked(tmp_path)


@pytest.mark.parametrize("file", ["energy_uj", "max_energy_range_uj"])
def test_permission_is_asked_for_when_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Not at the first training window: with the fix in the same line."""
    trees.rapl(tmp_path)
    opened = Path.open

    def refuse(path: Path, *args: object, **kwargs: object) -> object:
        if path.name == file:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    fix = r"only by root\); give the agent's group read access by tmpfiles.d or udev, see docs/energy.md"
    with pytest.raises(EnergyError, match=f"intel-rapl:0/{file}: may not be read by this user .*{fix}"):
        asked(tmp_path)


def test_no_zones_at_all(tmp_path: Path) -> None:
    """Neither without the folder, nor with the control type alone."""
    with pytest.raises(AbsentError, match=f"no RAPL zones below {tmp_path}/class/powercap"):
        asked(tmp_path)
    trees.rapl(tmp_path, ())
    with pytest.raises(AbsentError, match="no RAPL zones"):
        asked(tmp_path)


def test_links_into_a_masked_tree_are_no_zones(tmp_path: Path) -> None:
    """A container sees the links, and nothing behind them."""
    trees.rapl(tmp_path)
    shutil.rmtree(tmp_path / "devices")
    with pytest.raises(AbsentError):
        asked(tmp_path)


def test_a_folder_without_a_name_is_no_zone(tmp_path: Path) -> None:
    """And does not hide the others."""
    folder = trees.rapl(tmp_path)
    (folder / "intel-rapl:7").mkdir()
    assert asked(tmp_path).rails == ("package-0",)


def test_zones_without_a_package_are_named(tmp_path: Path) -> None:
    """There is something, and nobody can say what of it is the total."""
    trees.rapl(tmp_path, (trees.PSYS, Zone("core", 1)))
    with pytest.raises(EnergyError, match=r"RAPL has no package zone, only psys, core; name in energy.rails") as caught:
        asked(tmp_path)
    assert not isinstance(caught.value, AbsentError)


def test_switched_off(tmp_path: Path) -> None:
    """The control type's own switch; that of a zone is about limits."""
    (trees.rapl(tmp_path) / "enabled").write_text("0\n")
    with pytest.raises(EnergyError, match="intel-rapl/enabled: RAPL is switched off; write 1 to this file"):
        asked(tmp_path)


def test_no_switch_is_no_matter(tmp_path: Path) -> None:
    """Older kernels have none."""
    (trees.rapl(tmp_path) / "enabled").unlink()
    assert asked(tmp_path).rails == ("package-0",)


def test_a_module_that_is_loaded_again_is_read_again(tmp_path: Path) -> None:
    """While it is gone, an error names the file."""
    folder = trees.rapl(tmp_path)
    reader = asked(tmp_path)
    folder.rename(tmp_path / "gone")
    with pytest.raises(EnergyError, match="energy_uj: is not there"):
        reader.read()
    (tmp_path / "gone").rename(folder)
    Mover(tmp_path).reset(7)
    assert reader.read() == (7,)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold zones: that is not the same as none."""
    trees.rapl(tmp_path)

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(rapl.Path, "iterdir", refuse)
    with pytest.raises(EnergyError, match="class/powercap: cannot be listed") as caught:
        asked(tmp_path)
    assert not isinstance(caught.value, AbsentError)
