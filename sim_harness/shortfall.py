"""What a run that is over did not come to: nodes short of the end, rounds that did not end, trainings that failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

_NAMED: Final = 4
"""Nodes that a line names; all of them are in summary.json."""


def missing_rounds(summary: Mapping[str, Any]) -> str:
    """Return which nodes did not come to the end, and how many rounds ended; nothing of a run that is complete."""
    planned = summary["nodes"] * summary["rounds"]
    ended, unfinished = summary.get("rounds_ended", planned), summary.get("unfinished_nodes")
    if ended == planned and not unfinished:
        return ""
    words = f"incomplete: {ended:,} of {planned:,} rounds of all nodes ended"
    if unfinished is None:  # of real agents nobody tells
        return words
    return (
        f"{words}; {_names(unfinished)} did not come to the end"
        if unfinished
        else f"{words}; all nodes came to the end"
    )


def failed_trainings(summary: Mapping[str, Any]) -> str:
    """Return how many trainings gave no model; nothing where all did, or the run does not tell it."""
    failed = summary["training_rounds"].get("failed", 0)
    return f"{failed:,} {'training' if failed == 1 else 'trainings'} gave no model" if failed else ""


def commonest(errors: Iterable[str]) -> str:
    """Return the first of the most frequent errors, which count as the same where only their numbers differ."""
    found = list(errors)
    kinds = [re.sub(r"\b(nan|inf|\d[\d.e+-]*)", "0", error) for error in found]
    (kind, _), *_ = Counter(kinds).most_common(1)
    return found[kinds.index(kind)]


def _names(nodes: Sequence[str]) -> str:
    more = len(nodes) - _NAMED
    return ", ".join(nodes[:_NAMED]) + (f" and {more} more" if more > 0 else "")
