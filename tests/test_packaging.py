"""What is shipped: the wheel's packages, data, commands and requirements; and whose `tests` is tested."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import tests
from agent.profile import profile_names

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "provisioning", "sim_harness")
SHIPPED = (*PACKAGES, "firmware_profiles")
COMMANDS = {"skiptrain-agent": "agent", "skiptrain-provision": "provisioning", "skiptrain-sim": "sim_harness"}
MACHINES = ("x86_64", "aarch64", "armv7l")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel with the project's own build backend, without the network."""
    made = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(made)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = made.glob("skiptrain_agent-*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def requirements(wheel: zipfile.ZipFile) -> list[Requirement]:
    """Return all requirements of the wheel, those of its extras with their markers."""
    header = HeaderParser().parsestr(_read(wheel, "METADATA"))
    return [Requirement(text) for text in header.get_all("Requires-Dist", [])]


def _read(wheel: zipfile.ZipFile, name: str) -> str:
    """Return the text of a file of the wheel's .dist-info."""
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def _required(requirements: list[Requirement], machine: str, extra: str) -> list[Requirement]:
    """Return what is required on a kind of machine, with an extra or with none ("")."""
    environment = {"platform_machine": machine, "extra": extra}
    return [item for item in requirements if item.marker is None or item.marker.evaluate(environment)]


def test_our_tests_are_the_ones_imported() -> None:
    """A dependency (pyJoules) installs a stray top-level `tests`; `import tests` must still find these."""
    assert tests.__file__ is not None
    assert Path(tests.__file__).parent == Path(__file__).parent


def test_the_wheel_holds_our_packages_with_their_data_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Every file of the packages and every profile is shipped, data included; no other folder of the project is."""
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {
        str(path.relative_to(ROOT))
        for package in SHIPPED
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == ours
    assert "agent/learning/digits.npz" in shipped
    assert any(name.startswith("sim_harness/scenarios/") and name.endswith(".yaml") for name in shipped)
    assert {f"firmware_profiles/{name}.yaml" for name in profile_names()} <= shipped


def test_every_command_is_declared(wheel: zipfile.ZipFile) -> None:
    """Each console script points to the `main` of a package that is in the wheel."""
    parser = ConfigParser()
    parser.read_string(_read(wheel, "entry_points.txt"))
    expected = {command: f"{package}.__main__:main" for command, package in COMMANDS.items()}
    assert dict(parser["console_scripts"]) == expected
    assert {f"{package}/__main__.py" for package in PACKAGES} <= set(wheel.namelist())


def test_the_licence_and_the_notice_are_shipped(wheel: zipfile.ZipFile) -> None:
    """Apache-2.0 asks for both to go with every copy."""
    assert "Apache License" in _read(wheel, "licenses/LICENSE")
    assert "CC BY 4.0" in _read(wheel, "licenses/NOTICE")


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("extra", ["", "images", "export", "sim", "dev"])
def test_torch_comes_by_its_own_extra_only(requirements: list[Requirement], machine: str, extra: str) -> None:
    """As a plain dependency pip would put its torch over the one that NVIDIA built for a Jetson."""
    names = {item.name for item in _required(requirements, machine, extra)}
    assert {"numpy", "msgspec"} <= names
    assert "torch" not in names


@pytest.mark.parametrize(
    ("machine", "version", "admitted"),
    [
        ("aarch64", "2.2.2", False),
        ("aarch64", "2.3.0", True),
        ("aarch64", "2.9.1", True),
        ("aarch64", "2.10.0", False),
        ("aarch64", "2.10.1", False),
        ("aarch64", "2.11.0", False),
        ("aarch64", "2.14.1", False),
        ("x86_64", "2.13.0", True),
        ("x86_64", "2.13.0+cpu", True),
        ("x86_64", "2.12.0", False),
        ("x86_64", "2.13.1", False),
    ],
)
@pytest.mark.parametrize("extra", ["torch", "all"])
def test_the_torch_of_each_machine(
    requirements: list[Requirement],
    extra: str,
    machine: str,
    version: str,
    admitted: bool,
) -> None:
    """On aarch64 2.2 knows no numpy 2, 2.10 may die of an illegal instruction, 2.11 brings CUDA; x86-64 has one."""
    (torch,) = (item for item in _required(requirements, machine, extra) if item.name == "torch")
    assert torch.specifier.contains(version) is admitted


@pytest.mark.parametrize("tool", ["codespell", "import-linter", "mypy", "ruff"])
def test_a_new_minor_version_of_a_linter_cannot_fail_the_checks(requirements: list[Requirement], tool: str) -> None:
    """The installed minor version is admitted and the next one is not; every Python of ours can have some version."""
    (wanted,) = (item for item in _required(requirements, "x86_64", "dev") if item.name == tool)
    here = Version(metadata.version(tool))
    assert here in wanted.specifier
    assert f"{here.major}.{here.minor + 1}.0" not in wanted.specifier
    assert tool != "import-linter" or "2.5.0" in wanted.specifier  # 2.16 needs Python 3.11
