"""YAML files checked against a msgspec type; every error names file, line and column, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from agent.errors import ConfigError

T = TypeVar("T")

_PATH_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)")
_PLACE = re.compile(r" - at (?:`key` in )?`(\$[^`]*)`$")
MAX_BYTES = 1 << 20
"""No configuration is longer; a longer file is not even parsed."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that also takes 1e-3 for the number it is, as YAML 1.2 does, and knows no aliases.

    A few aliases of aliases stand for more values than fit into memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases where they stand."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not taken here: write the value out", mark)
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Say where a value is that is not what its form or its tag promises, such as the date 2024-99-99."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError):
            kind = node.tag.rpartition(":")[2]
            problem = f"this is no {kind}; put quotes around a text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a configuration file: no unknown keys."""


class Document:
    """One YAML file: its plain values, and where each of them stands."""

    def __init__(self, name: str, text: str, overrides: Sequence[str] = ()) -> None:
        """Parse `text`; `overrides` are `a.b=value` settings that win over the file. Raises ConfigError."""
        self.name = name
        self._overridden: dict[str, str] = {}
        self._node, data = _parse(name, text)
        self.data: Any = {} if data is None else data
        for setting in overrides:
            self._override(setting)

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Document:
        """Read a file; ConfigError when that cannot be done."""
        try:
            with Path(path).open("rb") as file:
                text = file.read(MAX_BYTES + 1).decode("utf-8-sig")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: this is not text in UTF-8") from None
        return cls(str(path), text, overrides)

    def to(self, type_: type[T]) -> T:
        """Return the values as `type_`; ConfigError names the first that does not fit."""
        try:
            return msgspec.convert(self.data, type_, strict=True)
        except msgspec.ValidationError as error:
            raise self.error(*place_and_message(error)) from None

    def error(self, path: str, message: str) -> ConfigError:
        """Return a ConfigError that points at `path` (`$.mqtt.port`) of this file, or at the setting that made it."""
        unknown = re.search(r"unknown field `(.*)`$", message, re.DOTALL)
        missing = re.search(r"missing required field `([^`]*)`", message)
        if unknown:
            message = f"unknown key `{' '.join(unknown[1].split())}`"
        if missing:
            message = f"the key `{missing[1]}` is missing here"
        line, column, found = self._mark(path, unknown[1] if unknown else "")
        where = ".".join(filter(None, [path.removeprefix("$").removeprefix("."), unknown[1] if unknown else ""]))
        for key, setting in reversed(self._overridden.items()):
            inside = where == key or where.startswith((f"{key}.", f"{key}["))
            if inside or (not found and key.startswith(f"{where}.")):
                return ConfigError(f"--set {setting}: {message} (at {where})")
        suffix = f" (at {' '.join(where.split())})" if where else ""
        return ConfigError(f"{self.name}:{line}:{column}: {message}{suffix}")

    def _mark(self, path: str, key: str) -> tuple[int, int, bool]:
        """Return line and column, from 1, of the deepest part of `path` in the file, and whether that is all of it.

        `key` comes below `path`, and may be any text.
        """
        node, line, column = self._node, 1, 1
        for name, index in [*_PATH_PART.findall(path), *([(key, "")] if key else [])]:
            if isinstance(node, yaml.MappingNode):
                found = [(k, v) for k, v in node.value if k.value == name]
                if not found:
                    return line, column, False
                mark, node = found[0][0].start_mark, found[0][1]
            elif isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
                node = node.value[int(index)]
                mark = node.start_mark
            else:
                return line, column, False
            line, column = mark.line + 1, mark.column + 1
        return line, column, True

    def _override(self, setting: str) -> None:
        key, equals, value = setting.partition("=")
        names = key.split(".")
        if not equals or not all(names):
            raise ConfigError(f"--set {setting}: write it as section.key=value, such as policy.name=d-psgd")
        _, parsed = _parse(f"--set {setting}", value)
        target = self.data
        for name in names[:-1]:
            if not isinstance(target, dict):
                break
            target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {setting}: {key} has no keys below it")
        target[names[-1]] = parsed
        self._overridden.pop(key, None)
        self._overridden[key] = setting


def _parse(name: str, text: str) -> tuple[yaml.Node | None, Any]:
    """Return one YAML document as nodes, which know their places, and as plain values; ConfigError where it is none."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{name}: longer than {MAX_BYTES} bytes, which no configuration is")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_double_keys(node)
        return node, None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{name}{where}: {error.problem or 'this is not YAML'}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML lets `"\\UFFFFFFFF"` out as a ValueError
        raise ConfigError(f"{name}: this is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply to be a configuration") from None


def _refuse_double_keys(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_double_keys(item)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                problem = f"`{key.value}` stands here twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
            _refuse_double_keys(value)


def place_and_message(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return the path that an error of msgspec names (`$.mqtt.port`; `$` where it names none), and its other words."""
    message, place = str(error), _PLACE.search(str(error))
    return ("$", message) if place is None else (place[1], message[: place.start()])


def choose(name: str, known: Iterable[str]) -> str:
    """Return "" if `name` is known, else a message with what is known and the nearest of it."""
    names = sorted(known)
    if name in names:
        return ""
    import difflib  # for a mistake only

    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no {name!r}{hint} (known: {', '.join(names)})"
