"""YAML files checked against a msgspec type; every error names file, line and column, and what would be right."""

from __future__ import annotations

import difflib
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


class _Loader(yaml.SafeLoader):
    """SafeLoader that also takes 1e-3 for the number it is, as YAML 1.2 does."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class Document:
    """One YAML file: its plain values, and where each of them stands."""

    def __init__(self, name: str, text: str, overrides: Sequence[str] = ()) -> None:
        """Parse `text`; `overrides` are `a.b=value` settings that win over the file. Raises ConfigError."""
        self.name = name
        self._overridden: dict[str, str] = {}
        try:
            self._node = yaml.compose(text, Loader=_Loader)
            self._refuse_double_keys(self._node)
            self.data: Any = yaml.load(text, Loader=_Loader) or {}  # noqa: S506  it is a SafeLoader
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise ConfigError(f"{name}{where}: {error.problem or 'this is not YAML'}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{name}: this is not YAML: {' '.join(str(error).split())}") from None
        except RecursionError:
            raise ConfigError(f"{name}: nested too deeply to be a configuration") from None
        for setting in overrides:
            self._override(setting)

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Document:
        """Read a file; ConfigError when that cannot be done."""
        try:
            text = Path(path).read_text(encoding="utf-8")
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
            message, _, path = str(error).partition(" - at `")
            raise self.error(path.rstrip("`") or "$", message) from None

    def error(self, path: str, message: str) -> ConfigError:
        """Return a ConfigError that points at `path` (`$.mqtt.port`) of this file, or at the setting that made it."""
        unknown = re.search(r"unknown field `([^`]*)`", message)
        if unknown:
            path = f"{path}.{unknown[1]}"
            message = f"unknown key `{unknown[1]}`"
        missing = re.search(r"missing required field `([^`]*)`", message)
        if missing:
            message = f"the key `{missing[1]}` is missing here"
        where = path.removeprefix("$.")
        for key, setting in self._overridden.items():
            if where == key or where.startswith(f"{key}."):
                return ConfigError(f"--set {setting}: {message} (at {where})")
        mark = self._mark(path)
        suffix = "" if where == "$" else f" (at {where})"
        return ConfigError(f"{self.name}:{mark[0]}:{mark[1]}: {message}{suffix}")

    def _mark(self, path: str) -> tuple[int, int]:
        """Return line and column, from 1, of the deepest part of `path` that the file has."""
        node, line, column = self._node, 1, 1
        for key, index in _PATH_PART.findall(path):
            if isinstance(node, yaml.MappingNode):
                found = [(k, v) for k, v in node.value if k.value == key]
                if not found:
                    break
                mark = found[0][0].start_mark
                node = found[0][1]
            elif isinstance(node, yaml.SequenceNode) and index and int(index) < len(node.value):
                node = node.value[int(index)]
                mark = node.start_mark
            else:
                break
            line, column = mark.line + 1, mark.column + 1
        return line, column

    def _override(self, setting: str) -> None:
        key, equals, value = setting.partition("=")
        names = key.split(".")
        if not equals or not all(names):
            raise ConfigError(f"--set {setting}: write it as section.key=value, such as policy.name=d-psgd")
        try:
            parsed = yaml.load(value, Loader=_Loader)  # noqa: S506  it is a SafeLoader
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting}: the value is not YAML") from None
        target = self.data
        for name in names[:-1]:
            if not isinstance(target, dict):
                break
            target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {setting}: {key} has no keys below it")
        target[names[-1]] = parsed
        self._overridden[key] = setting

    def _refuse_double_keys(self, node: yaml.Node | None) -> None:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._refuse_double_keys(item)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if str(key.value) in seen:
                    mark = key.start_mark
                    raise ConfigError(f"{self.name}:{mark.line + 1}:{mark.column + 1}: `{key.value}` stands here twice")
                seen.add(str(key.value))
                self._refuse_double_keys(value)


def choose(name: str, known: Iterable[str]) -> str:
    """Return "" if `name` is known, else a message with what is known and the nearest of it."""
    names = sorted(known)
    if name in names:
        return ""
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no {name!r}{hint} (known: {', '.join(names)})"
