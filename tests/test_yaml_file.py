"""YAML that is checked against a type, and errors that say where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.yaml_file import MAX_BYTES, Document, choose


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    """A section."""

    size: int = 1
    names: tuple[str, ...] = ()


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    """A file."""

    inner: Inner
    rate: float = 0.5
    text: str = ""


def read(text: str, *overrides: str) -> Outer:
    """Return what a file of that name and text says."""
    return Document("some.yaml", text, overrides).to(Outer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner:\n  size: 1\n  breadth: 2\n", "some.yaml:3:3: unknown key `breadth` (at inner.breadth)"),
        ("inner: {}\ninner.size: 2\n", "some.yaml:2:1: unknown key `inner.size` (at inner.size)"),
        ("inner: {}\n'a - at `b`': 2\n", "some.yaml:2:1: unknown key `a - at `b`` (at a - at `b`)"),
        ('inner: {}\n"a\\nb": 2\n', "some.yaml:2:1: unknown key `a b` (at a b)"),
        ("inner:\n  size: big\n", "some.yaml:2:3: Expected `int`, got `str` (at inner.size)"),
        ("inner:\n  names: [a, b, 3]\n", "some.yaml:2:17: Expected `str`, got `int` (at inner.names[2])"),
        ("inner: {}\n1: 2\n", "some.yaml:1:1: Expected `str`"),
        ("inner:\n  2: 2\n", "some.yaml:1:1: Expected `str` (at inner)"),
        ("rate: 1.0\n", "some.yaml:1:1: the key `inner` is missing here"),
        ("", "some.yaml:1:1: the key `inner` is missing here"),
        ("- a\n", "some.yaml:1:1: Expected `object`, got `array`"),
        ("inner: {}\nrate: 1\nrate: 2\n", "some.yaml:3:1: `rate` stands here twice"),
        ("inner:\n  - {size: 1, size: 2}\n", "some.yaml:2:15: `size` stands here twice"),
        ("inner: {\n", "some.yaml:2:1: expected the node content, but found '<stream end>'"),
        ("inner: a: b\n", "some.yaml:1:9: mapping values are not allowed here"),
        ("--- {}\n--- {}\n", "some.yaml:2:1: but found another document"),
        ("text: 2024-99-99\n", "some.yaml:1:7: this is no timestamp; put quotes around a text"),
        ("text: !!int word\n", "some.yaml:1:7: this is no int; put quotes around a text"),
        ("text: !!bool word\n", "some.yaml:1:7: this is no bool; put quotes around a text"),
        ("? [a]\n: b\n", "some.yaml:1:3: found unhashable key"),
        ("text: \x00\n", "some.yaml: this is not YAML: unacceptable character #x0000"),
        ('text: "\\UFFFFFFFF"\n', "some.yaml: this is not YAML"),
        ("!!python/object/apply:os.system [id]\n", "some.yaml:1:1: could not determine a constructor for the tag"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    """File, line and column point at the key or value that is wrong, whatever kind of wrong it is."""
    with pytest.raises(ConfigError) as error:
        read(text)
    assert str(error.value).startswith(message)


def test_numbers_with_an_exponent_are_numbers() -> None:
    """YAML 1.1 takes 1e-3 for a text; 1.2 and everybody who writes a learning rate do not."""
    assert Document("f", "[1e-3, 1E3, -2.5e+2, .5e1, 1_0e2, 1.0]").data == [0.001, 1000.0, -250.0, 5.0, 1000.0, 1.0]
    assert Document("f", "[e3, 1e, 1-3, 0x1e]").data == ["e3", "1e", "1-3", 30]


def test_overrides_win_over_the_file_in_their_order() -> None:
    """The last setting of a key counts, and sections that the file lacks are made."""
    got = read("inner: {size: 1}\n", "inner.size=2", "inner.size=3", "inner.names=[x, y]", "text=a=b", "rate=1e-3")
    assert got == Outer(Inner(3, ("x", "y")), 0.001, "a=b")
    assert read("", "inner.size=4") == Outer(Inner(4))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("inner.size=big", "--set inner.size=big: Expected `int`, got `str` (at inner.size)"),
        ("inner.names=[a, 1]", "--set inner.names=[a, 1]: Expected `str`, got `int` (at inner.names[1])"),
        ("inner={size: big}", "--set inner={size: big}: Expected `int`, got `str` (at inner.size)"),
        ("inner.breadth=1", "--set inner.breadth=1: unknown key `breadth` (at inner.breadth)"),
        ("iner.size=1", "--set iner.size=1: unknown key `iner` (at iner)"),
        ("inner.size", "--set inner.size: write it as section.key=value"),
        ("inner..size=1", "--set inner..size=1: write it as section.key=value"),
        ("text.size=1", "--set text.size=1: text.size has no keys below it"),
        ("inner={", "--set inner={:1:2: expected the node content"),
        ("inner={a: 1, a: 2}", "--set inner={a: 1, a: 2}:1:8: `a` stands here twice"),
        ("text=2024-99-99", "--set text=2024-99-99:1:1: this is no timestamp"),
    ],
)
def test_an_error_of_an_override_names_the_setting(setting: str, message: str) -> None:
    """Who typed --set must not be sent to a line of the file."""
    with pytest.raises(ConfigError) as error:
        read("inner: {size: 1}\ntext: a\n", setting)
    assert str(error.value).startswith(message)


def test_an_error_of_the_file_is_not_blamed_on_an_override_nearby() -> None:
    """A setting of another key of the same section does not take the file's errors."""
    with pytest.raises(ConfigError, match=r"^some.yaml:1:18: Expected `str`, got `int` \(at inner.names\[0\]\)"):
        read("inner: {names: [ 5 ]}\n", "inner.size=2")


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 40))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "f:2:10: aliases are not taken here: write the value out"),
        ("a: &a [*a]", "f:1:8: aliases are not taken here: write the value out"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "f:3:7: aliases are not taken here: write the value out"),
        ("[" * 10_000, "f: nested too deeply to be a configuration"),
        ("- " * 10_000, "f: nested too deeply to be a configuration"),
        ("a" * (MAX_BYTES + 1), "f: longer than 1048576 bytes"),
    ],
)
def test_a_document_that_would_eat_the_memory_is_refused(text: str, message: str) -> None:
    """Aliases of aliases, which multiply, a depth that no stack has and a length that nobody writes end cleanly."""
    with pytest.raises(ConfigError) as error:
        Document("f", text)
    assert str(error.value).startswith(message)


def test_a_file_that_never_ends_is_not_read_to_its_end() -> None:
    """A path that leads to a device costs a megabyte, not the memory."""
    with pytest.raises(ConfigError, match="/dev/zero: longer than"):
        Document.read("/dev/zero")


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """Missing, a folder, and bytes that are no text are told apart."""
    (tmp_path / "latin.yaml").write_bytes(b"text: \xe9\n")
    for name, message in (("none", "No such file"), ("", "Is a directory"), ("latin.yaml", "not text in UTF-8")):
        with pytest.raises(ConfigError, match=message):
            Document.read(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    """Editors of Windows put one before the text."""
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfinner: {size: 2}\n")
    assert Document.read(tmp_path / "bom.yaml").to(Outer) == Outer(Inner(2))


YAML_LIKE = st.text(st.sampled_from(" \n\t:-?[]{},&*!|>'\"%@`#~0123456789_.eEx+abinersztyp=<\\Uu\u2028é\ufeff"))
SETTINGS = st.builds("{}={}".format, st.sampled_from(["inner", "inner.size", "inner.names", "text", "x.y"]), YAML_LIKE)


@given(YAML_LIKE, st.lists(SETTINGS, max_size=2))
@example("&a : *a", [])
@example("!!set {a, b}", ["inner=!!omap [a: 1]"])
@example("text: !!binary x", [])
@example("text: 0x_", [])
@example("inner: !!float _", [])
def test_no_text_raises_anything_but_a_config_error(text: str, overrides: list[str]) -> None:
    """Whatever stands in a file or behind --set: it is the values asked for, or one ConfigError."""
    try:
        assert isinstance(Document("f", text, overrides).to(Outer), Outer)
    except ConfigError as error:
        assert str(error).startswith(("f:", "--set "))  # noqa: PT017  both outcomes are right


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["inner", "rate", "text", "size", "a.b"]), VALUES))
def test_no_value_raises_anything_but_a_config_error(data: dict[str, Any]) -> None:
    """Well-formed files of the wrong shape are refused with a place."""
    document = Document("f", msgspec.yaml.encode(data).decode())
    try:
        assert isinstance(document.to(Outer), Outer)
    except ConfigError as error:
        assert str(error).startswith("f:")  # noqa: PT017  both outcomes are right


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    """A typo gets a suggestion and the list; a right name gets nothing."""
    assert choose("ring", ["ring", "regular"]) == ""
    assert choose("rng", ["ring", "regular"]) == "there is no 'rng'; did you mean ring? (known: regular, ring)"
    assert choose("xyz", ["ring"]) == "there is no 'xyz' (known: ring)"
