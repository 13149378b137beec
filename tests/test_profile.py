"""Board profiles: every shipped one keeps the contract, and a bad one is refused in one line that says where."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement

import agent.energy
import firmware_profiles
from agent.energy.trace import published_rows
from agent.errors import ConfigError
from agent.profile import ENERGY_SOURCES, Profile, Watts, load_profile, profile_names
from agent.yaml_file import Section
from tests.profile_table import PAGE, replaced

FOLDER = Path(firmware_profiles.__path__[0])
PHONES = {"xiaomi-12-pro", "galaxy-s22-ultra", "oneplus-nord-2", "poco-x3"}
RELAYS = {"raspberry-pi-zero-2-w", "jetson-nano", "jetson-xavier-nx"}
BOARDS = {
    *("raspberry-pi-zero-2-w", "raspberry-pi-3b-plus", "raspberry-pi-4b"),
    *("raspberry-pi-5", "raspberry-pi-5-ina219", "raspberry-pi-5-ina226"),
    *("jetson-nano", "jetson-xavier-nx", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin"),
    *("x86", "x86-rapl"),
}
GOOD = """\
version: 1
about: a board
support: train
energy:
  source: ina
  rails: [VDD_IN]
power:
  idle_w: {value: 1, source: a meter}
  load_w: null
  max_w: {value: 5.5, source: a meter}
sensor:
  overlays: ["dtparam=i2c_arm=on"]
  modules: [ina2xx]
learning: {threads: 4, max_batch_size: 8, memory_mb: 500, source: a guess}
torch: {requirement: "torch>=2.3", note: any}
"""
RELAY = """\
version: 1
about: a small board
support: relay
reason: too small
energy: {source: estimate}
power: {idle_w: null, load_w: null, max_w: null}
learning: {memory_mb: 100, source: a guess}
torch: null
"""

each = pytest.mark.parametrize("name", profile_names())


def load(tmp_path: Path, text: str) -> Profile:
    """Return the profile of a file with that text."""
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return load_profile(path)


def watts_of(profile: Profile) -> dict[str, Watts]:
    """Return the powers that are known."""
    return {name: watts for name in ("idle_w", "load_w", "max_w") if (watts := getattr(profile.power, name))}


def test_the_boards_of_the_project_are_there_and_no_others() -> None:
    """Each file of the folder is a profile under its own name."""
    assert set(profile_names()) == BOARDS | PHONES
    files = {path.name for path in FOLDER.iterdir() if path.name != "__pycache__"}
    assert files == {"__init__.py", *(f"{name}.yaml" for name in profile_names())}


@each
def test_a_profile_is_valid_and_named_by_a_slug(name: str) -> None:
    """It is read by name as by path; the file opens with a comment that says what the board is."""
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    path = FOLDER / f"{name}.yaml"
    assert load_profile(name) == load_profile(path) == load_profile(str(path))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert max(map(len, text.splitlines())) <= 120
    assert "hardware" in text.partition("version:")[0] or name in PHONES, "say that nothing was measured"


@each
def test_every_number_of_a_profile_has_a_source(name: str) -> None:
    """Watts and corrections say who measured them; ceilings, which are ours, say that nobody did."""
    profile = load_profile(name)
    sources = [watts.source for watts in watts_of(profile).values()]
    if profile.energy.correction:
        sources.append(profile.energy.correction.source)
    for source in sources:
        assert len(source.split()) > 1, source
        assert "choice" not in source
    assert profile.learning.source == "choice of this project, not measured"


@each
def test_the_sensor_of_a_profile_fits_its_board(name: str) -> None:
    """Overlays are for a Pi's config.txt, the PMIC wants a group, RAPL wants a rule that gives a group the counters."""
    profile = load_profile(name)
    sensor, source = profile.sensor, profile.energy.source
    assert not sensor.overlays or name.startswith("raspberry-pi")
    assert all(len(line) <= 98 for line in sensor.overlays), "the firmware reads no more of a line"
    assert ("video" in sensor.groups) is (source == "rpi-pmic")
    assert ("CVE" in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")) is (source == "rapl")
    assert all(rule.startswith("SUBSYSTEM==") for rule in sensor.udev)
    assert all("skiptrain" in rule and "o+r" not in rule for rule in sensor.udev if source == "rapl")
    assert bool(sensor.udev) is (source == "rapl" or "-ina2" in name)
    assert (source == "trace") is (name in PHONES)


@each
def test_who_trains_has_the_torch_that_the_project_asks_for(name: str) -> None:
    """Boards without a usable torch or with 512 MB share only, and say why."""
    profile = load_profile(name)
    assert (profile.support == "relay") is (name in RELAYS)
    assert bool(profile.reason) is (name in RELAYS)
    if profile.torch is None:
        return
    wanted = Requirement(profile.torch.requirement)
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    extras = dict(re.findall(r'"(torch[^;"]+); platform_machine == \'(\w+)\'"', pyproject))
    machines = {machine: Requirement(text) for text, machine in extras.items()}
    if name not in PHONES:
        assert wanted == machines["x86_64" if name.startswith("x86") else "aarch64"]


@pytest.mark.parametrize("name", sorted(PHONES))
def test_a_phone_replays_what_was_published(name: str) -> None:
    """Its watts are those of the authors' rows, and its device and workload have such a row."""
    profile = load_profile(name)
    text = Path(agent.energy.__path__[0], "published.csv").read_text(encoding="utf-8")
    published = {float(row["max_power_w"]) for row in csv.DictReader(text.splitlines()) if row["device"] == name}
    assert {watts.value for watts in watts_of(profile).values()} == published
    assert list(watts_of(profile)) == ["max_w"]
    energy = profile.energy
    assert energy.device == name
    assert (energy.workload, energy.device) in {(row.workload, row.device) for row in published_rows()}


def test_the_corrected_watts_of_the_pi_5_follow_from_its_correction() -> None:
    """The PMIC's published 1.55, 4.51 and 10.799894 W give the profile's idle, load and maximum."""
    profile = load_profile("raspberry-pi-5")
    correction = profile.energy.correction
    assert correction is not None
    read = {"idle_w": 1.55, "load_w": 4.51, "max_w": 10.799894}
    corrected = {name: round(correction.slope * watts + correction.offset_w, 2) for name, watts in read.items()}
    assert corrected == {name: watts.value for name, watts in watts_of(profile).items()}


def test_no_board_adds_a_rail_to_the_one_that_feeds_it() -> None:
    """On the AGX Orin VDDQ_VDD2_1V8AO comes from VIN_SYS_5V0; elsewhere the input is the total."""
    rails = {name: load_profile(name).energy.rails for name in profile_names() if name.startswith("jetson")}
    assert rails.pop("jetson-agx-orin") == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert rails.pop("jetson-nano") == ("POM_5V_IN",)
    assert set(rails.values()) == {("VDD_IN",)}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version: 1", "version: 2", "1:1: Expected `int` <= 1 (at version)"),
        ("about: a board\n", "", "1:1: the key `about` is missing here"),
        ("about: a board", "title: a board", "2:1: unknown key `title` (at title)"),
        ("support: train", "support: maybe", "3:1: Invalid enum value 'maybe' (at support)"),
        (
            "source: ina",
            "source: ina219",
            (
                f"5:3: there is no 'ina219'; did you mean ina? (known: {', '.join(sorted(ENERGY_SOURCES))})"
                " (at energy.source)"
            ),
        ),
        ("[VDD_IN]", "[A, A]", "6:3: a rail stands here twice, and would be counted twice (at energy.rails)"),
        ("source: ina", "source: trace", "4:1: `source: trace` needs `device` and `workload` (at energy)"),
        (
            "rails: [VDD_IN]",
            "device: poco-x3",
            "6:3: this is for `source: trace`, not for ina: leave it out (at energy.device)",
        ),
        ("value: 1,", "value: -1,", "8:12: Expected `float` >= 0.0 (at power.idle_w.value)"),
        ("value: 1,", "value: .nan,", "8:12: Expected `float` >= 0.0 (at power.idle_w.value)"),
        ("value: 5.5", "value: 1000.1", "10:11: Expected `float` <= 1000.0 (at power.max_w.value)"),
        ("value: 5.5", "value: 0.5", "10:11: max_w 0.5 is less than idle_w 1 (at power.max_w.value)"),
        (
            "load_w: null",
            "load_w: {value: 6, source: it}",
            "10:11: max_w 5.5 is less than load_w 6 (at power.max_w.value)",
        ),
        ("  load_w: null\n", "", "7:1: the key `load_w` is missing here (at power)"),
        (
            "value: 1, source: a meter",
            "value: 1",
            "8:3: the key `source` is missing here (at power.idle_w)",
        ),
        ("source: a meter", 'source: ""', "8:22: Expected `str` of length >= 1 (at power.idle_w.source)"),
        (
            "dtparam=i2c_arm=on",
            "i2c_arm on",
            (
                "12:14: a line of config.txt is wanted here, `dtparam=...` or `dtoverlay=...`, without blanks"
                " (at sensor.overlays[0])"
            ),
        ),
        (
            "dtparam=i2c_arm=on",
            r"dtparam=a\ndtparam=b",
            "12:14: one line of text is wanted here (at sensor.overlays[0])",
        ),
        ("modules: [ina2xx]", r'udev: ["a", "b\nc"]', "13:15: one line of text is wanted here (at sensor.udev[1])"),
        ("[ina2xx]", "[rm -r]", "13:13: 'rm -r' is no name of a module (at sensor.modules[0])"),
        ("modules: [ina2xx]", "groups: [a b]", "13:12: 'a b' is no name of a group (at sensor.groups[0])"),
        ("threads: 4, ", "", "14:1: a board that trains needs `threads` here (at learning)"),
        ("memory_mb: 500", "memory_mb: 0", "14:43: Expected `int` >= 1 (at learning.memory_mb)"),
        (
            'torch: {requirement: "torch>=2.3", note: any}',
            "torch: null",
            "15:1: a board that trains needs a build of torch; or say `support: relay`, and the reason (at torch)",
        ),
    ],
)
def test_a_bad_profile_is_refused_where_it_is_bad(tmp_path: Path, old: str, new: str, says: str) -> None:
    """The error is one line that names file, line and column."""
    load(tmp_path, GOOD)
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert str(caught.value) == f"{tmp_path}/own.yaml:{says}"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "reason: too small\n",
            "",
            "3:1: `support: relay` needs `reason`: why does this board not train? (at support)",
        ),
        (
            "reason: too small",
            'reason: " "',
            "3:1: `support: relay` needs `reason`: why does this board not train? (at support)",
        ),
        (
            "torch: null",
            "torch: {requirement: torch, note: any}",
            "8:1: `support: relay` trains nothing: write `torch: null` (at torch)",
        ),
        ("torch: null\n", "", "1:1: the key `torch` is missing here"),
        (
            "{memory_mb",
            "{threads: 1, memory_mb",
            "7:12: `support: relay` trains nothing: leave this out (at learning.threads)",
        ),
        (
            "{source: estimate}",
            "{source: trace, device: poco-x4, workload: femnist}",
            "5:25: no published row for femnist/poco-x4; there are "
            + ", ".join(sorted(f"{row.workload}/{row.device}" for row in published_rows()))
            + " (at energy.device)",
        ),
        (
            "{source: estimate}",
            "{source: trace, device: poco-x3, workload: femnist, correction: {slope: 1, offset_w: 0, source: me}}",
            "5:61: a trace is replayed as it was published: leave this out (at energy.correction)",
        ),
        (
            "{source: estimate}",
            "{source: ina, correction: {slope: 0, offset_w: 0, source: me}}",
            "5:36: Expected `float` > 0.0 (at energy.correction.slope)",
        ),
    ],
)
def test_a_bad_profile_that_does_not_train_is_refused_likewise(tmp_path: Path, old: str, new: str, says: str) -> None:
    """It says why it does not train, and has neither torch nor ceilings of training."""
    load(tmp_path, RELAY)
    assert old in RELAY
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, RELAY.replace(old, new, 1))
    assert str(caught.value) == f"{tmp_path}/own.yaml:{says}"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    """And with all that there are, and with how to name a file."""
    with pytest.raises(ConfigError) as caught:
        load_profile("raspberry-pi5")
    known = ", ".join(profile_names())
    assert str(caught.value) == (
        f"profile: there is no 'raspberry-pi5'; did you mean raspberry-pi-5? (known: {known});"
        " a file of your own is named by a path that ends in .yaml"
    )


@pytest.mark.parametrize("path", ["nowhere/raspberry-pi-5", "nowhere.yaml", Path("raspberry-pi-5")])
def test_a_path_is_never_taken_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | Path) -> None:
    """A file that is not there is an error, not a look among the shipped ones."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: cannot be read: No such file or directory$"):
        load_profile(path)


def test_the_tables_of_the_page_are_up_to_date() -> None:
    """`python -m tests.profile_table --write` makes them; every key of a profile stands on the page, too."""
    page = PAGE.read_text(encoding="utf-8")
    assert replaced(page) == page
    for key in keys_of(Profile):
        assert f"| `{key}` |" in page, key


def keys_of(section: type[msgspec.Struct], prefix: str = "") -> list[str]:
    """Return every key of a profile; sections without a default of their own are gone into."""
    found = []
    for field in msgspec.structs.fields(section):
        inner = field.type
        if isinstance(inner, type) and issubclass(inner, Section):
            found += keys_of(inner, f"{prefix}{field.name}.")
        else:
            found.append(f"{prefix}{field.name}")
    return found
