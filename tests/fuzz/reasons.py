"""Every reason of refusal that the code can give, read from its source: a new one is never without a test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (
    *("agent/core/wire.py", "agent/core/epochs.py", "agent/core/inbox.py", "agent/core/neighbourhood.py"),
    "agent/reach.py",
)
RAISERS = {"Refused", "UpdateRejected"}


def reasons() -> set[str]:
    """Return what `Refused` and `UpdateRejected` are made with, and what the functions that say why not return."""
    trees = [ast.parse((ROOT / source).read_text(encoding="utf-8")) for source in SOURCES]
    return {reason for tree in trees for node in ast.walk(tree) for reason in _given(node) if reason}


def _given(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and _name(node.func) in RAISERS:
        yield from _texts(*node.args)
    elif isinstance(node, ast.FunctionDef) and node.name.endswith("refusal"):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Return) and inner.value is not None:
                yield from _texts(inner.value)
    elif isinstance(node, ast.Assign) and [_name(target) for target in node.targets] == ["reason"]:
        yield from _texts(node.value)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _texts(*nodes: ast.expr) -> Iterator[str]:
    """Yield the texts that an expression can be: itself, or the arms of a condition."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.IfExp):
            yield from _texts(node.body, node.orelse)
