"""Files of one value: what is read, and how each way of going wrong is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agent.energy import sysfs
from agent.energy.sysfs import DeniedError, read_int, read_text
from agent.errors import EnergyError


@pytest.mark.parametrize(
    ("content", "value"), [("42\n", 42), ("32760 ma\n", 32760), (" -132000\n", -132000), ("0 ms", 0), ("7\0\0", 7)]
)
def test_the_first_word_is_the_number(tmp_path: Path, content: str, value: int) -> None:
    """Old Jetson drivers add a unit; gauges print a sign."""
    (tmp_path / "curr1_input").write_text(content)
    assert read_int(tmp_path / "curr1_input", "the current") == value


@pytest.mark.parametrize("content", ["garbage\n", "1_000\n", "0x10\n", "1.5\n", "-\n", "\u0663\n", "nan\n", "x" * 99])
def test_garbage_names_file_and_content(tmp_path: Path, content: str) -> None:
    """Nothing that is not a plain whole number becomes one."""
    path = tmp_path / "energy_uj"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(EnergyError, match=f"{path}: the energy must be a whole number, not '{content[:9].strip()}"):
        read_int(path, "the energy")


def test_bytes_that_are_no_text_are_garbage(tmp_path: Path) -> None:
    """A decoding error is no error of another kind."""
    (tmp_path / "energy_uj").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(EnergyError, match="must be a whole number"):
        read_int(tmp_path / "energy_uj", "the energy")


def test_an_empty_file_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer between truncate and write is waited for, and not for ever."""
    path, pauses = tmp_path / "energy_uj", []

    def write_at_the_second(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            path.write_text("5\n")

    monkeypatch.setattr(sysfs.time, "sleep", write_at_the_second)
    path.write_text("")
    assert (read_int(path, "it"), len(pauses)) == (5, 2)
    path.write_text("\n")
    with pytest.raises(EnergyError, match=f"{path}: is empty"):
        read_int(path, "it")
    assert len(pauses) == 6
    assert sum(pauses) < 0.02


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EACCES, DeniedError, "may not be read by this user"),
        (errno.EPERM, DeniedError, "may not be read by this user"),
        (errno.ENOENT, EnergyError, "is not there"),
        (errno.ENODATA, EnergyError, f"cannot be read \\({os.strerror(errno.ENODATA)}\\)"),
        (errno.EREMOTEIO, EnergyError, "cannot be read"),
    ],
)
def test_what_the_system_refuses_names_the_file(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[EnergyError], message: str
) -> None:
    """Each refusal says what to do."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(kind, match=f"^/sys/x/in0_input: {message}"):
        read_text(Path("/sys/x/in0_input"))
