"""Recordings that are damaged or hostile: each is answered with one line, and none hangs or fills the memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.energy.authors_csv import read_trace_rows
from agent.energy.recording import COLUMNS, MAGIC, Recording, cut, read_recording
from agent.errors import ConfigError

HEAD = '"source":"rapl","scope":"package","rails":["package-0"],"quality":"measured"'


def read(tmp_path: Path, *rows: str, head: str = "") -> Recording:
    """Read a recording with these rows, and with `head` in its first line."""
    path = tmp_path / "rec.csv"
    path.write_text("\n".join((f"{MAGIC}{{{HEAD}{head}}}", ",".join(COLUMNS), *rows, "")))
    return read_recording(path)


def test_the_least_and_the_most_that_may_stand_there(tmp_path: Path) -> None:
    """A refused training cost nothing."""
    head = ',"expected_uj":1,"upper_uj":1,"history":{"seen":0,"recent_uj":[1]}'
    rows = ("sample,0,0,,,", f"sample,1,{10**18},,,", "window,,0,,0,0", f"window,,{10**15},{10**15},1,1")
    got = read(tmp_path, *rows, head=head)
    assert (got.samples[-1], [window.energy_uj for window in got.windows]) == ((1.0, 10**18), [0, 10**15])


@pytest.mark.parametrize(
    "row",
    [
        "sample,nan,5,,,",
        "sample,inf,5,,,",
        "sample,-1,5,,,",
        "sample,1e999,5,,,",
        "sample,1,-5,,,",
        f"sample,1,{10**18 + 1},,,",
        "sample,1,5",
        f"window,,{10**15 + 1},,1,0",
        "window,,-1,,1,0",
        "window,,5,0,1,0",
        "window,,5,-1,1,0",
        f"window,,5,{10**15 + 1},1,0",
        "window,,5,5,nan,0",
        "window,,5,5,inf,0",
        "window,,5,5,-1,0",
        "window,,5,5,1,",
        "window,,5,5,1,nan",
        f"window,,{'9' * 5000},5,1,0",
        f"sample,{'9' * 200_000},5,,,",
        "other,1,5,,,",
    ],
    ids=lambda row: row[:24],
)
def test_a_row_that_cannot_be_is_named(tmp_path: Path, row: str) -> None:
    """File, line, and what stands there, not longer than a line."""
    with pytest.raises(ConfigError, match=r"rec\.csv:4: '.{1,90}' is no row of a recording$"):
        read(tmp_path, "sample,0,0,,,", row)


@pytest.mark.parametrize(
    "head",
    [
        ',"expected_uj":0,"upper_uj":1',
        ',"expected_uj":1,"upper_uj":-1',
        ',"expected_uj":3,"upper_uj":2',
        f',"expected_uj":1,"upper_uj":{10**19}',
        ',"history":{"seen":-1}',
        ',"history":{"recent_uj":[5,0]}',
        f',"history":{{"recent_uj":[{10**16}]}}',
        f',"history":{{"recent_uj":[{",".join("5" * 33)}]}}',
        f',"more":{"[" * 100_000}',
    ],
    ids=lambda head: head[:40],
)
def test_a_head_that_cannot_be_is_named(tmp_path: Path, head: str) -> None:
    """It is the first line."""
    with pytest.raises(ConfigError, match=r"rec\.csv:1: "):
        read(tmp_path, "sample,0,0,,,", head=head)


@pytest.mark.parametrize("reader", [read_recording, read_trace_rows])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "long", "bytes", "missing", "NUL"])
def test_what_is_no_file_of_text_is_refused(tmp_path: Path, reader: object, kind: str) -> None:
    """At once: nobody waits for a pipe's other end, and what has no end is not read."""
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "long":
        with path.open("wb") as file:
            file.truncate((1 << 28) + 1)
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe")
    elif kind == "NUL":
        path = tmp_path / "a\0b"
    said = {"long": "longer than", "bytes": "not text in UTF-8"}.get(kind, "cannot be read")
    assert callable(reader)
    with pytest.raises(ConfigError, match=said):
        reader(path)


def test_what_grows_while_it_is_read_is_read_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for what is read, not for what the file's size said."""
    monkeypatch.setattr("agent.energy.recording._MAX_BYTES", 190)
    path = tmp_path / "rec.csv"
    read(tmp_path)
    path.write_text(path.read_text().ljust(190))
    with pytest.raises(ConfigError, match=r"rec\.csv:3: ' *' is no row"):
        read_recording(path)
    path.write_text(path.read_text().ljust(191))
    with pytest.raises(ConfigError, match="longer than 190 bytes: record less"):
        read_recording(path)


def test_no_more_windows_are_cut_than_a_million() -> None:
    """However short the round, and without an error of arithmetic for any."""
    samples = ((0.0, 0), (1e6, 10**12))
    assert len(cut(samples, 1.1)) == 909_090
    for round_s in (1.0, 1e-3, 5e-324):
        with pytest.raises(ConfigError, match=r"energy\.round_s: .* more than 1000000 rounds"):
            cut(samples, round_s)
    for round_s in (0.0, -1.0, float("nan"), float("inf")):
        assert cut(samples, round_s) == ()
