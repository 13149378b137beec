"""docs/errors.md, made from the cases and from what the programs said to them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.bad_input.case import Case
from tests.bad_input.cases import CASES
from tests.bad_input.run import NAMES, ROOT, Outcome, pattern

PAGE = ROOT / "docs" / "errors.md"
OPENING = """\
# What is said, and what happens then

Each row is a mistake, or a surrounding that is against the agent, and the line that it writes to standard error. The
tests run each with the real programs: one line, no traceback, this exit code, and a ledger that has lost nothing.
`python -m tests.bad_input --write` makes this page. [Exit codes](exit-codes.md) says what the codes mean, and on which
of them systemd starts the agent again. `DIR` stands for a folder, `PORT` for a port; words of libraries and of the
system, such as those behind an `[Errno]`, may be others elsewhere.
"""
USAGE = 2


def verdict(case: Case, outcome: Outcome) -> str:
    """Return what is wrong with an outcome, "" if nothing is.

    A program that ends says one line that begins with its name, as the last one; before it there may be lines of the
    log, and argparse's usage where the command line cannot be understood. One that goes on logs its line and ends with
    0 when it is told to stop.
    """
    lines, name = outcome.lines, NAMES[case.program]
    said = [line for line in lines if re.match(rf"{name}( \w+)?: ", line)]
    wanted = pattern(case.says)
    problems = {
        f"exit code {outcome.code}, not {case.code or 0}": outcome.code != (case.code or 0),
        "a traceback": "Traceback" in "\n".join([*lines, outcome.output]),
        f"lines that are no log: {outcome.strange}": bool(outcome.strange) and case.code != USAGE,
        f"lost: {outcome.lost}": bool(outcome.lost),
        f"the line is not {case.says!r}": not any(wanted.fullmatch(line) for line in (said if case.code else lines)),
        f"{len(said)} lines of {name}": len(said) != bool(case.code),
        "words after the last line": bool(case.code) and lines[-1:] != tuple(said),
    }
    return "; ".join(text for text, wrong in problems.items() if wrong)


def said(case: Case, outcome: Outcome) -> str:
    """Return the line that the case is about, as it came; "" if it did not."""
    return next((line for line in outcome.lines if pattern(case.says).fullmatch(line)), "")


def row(case: Case, line: str) -> str:
    """Return the row of the table with the line that was said."""
    escaped = line.replace("|", chr(92) + "|")
    span = f"`` {escaped} ``" if "`" in line else f"`{escaped}`"
    code = "goes on" if case.code is None else str(case.code)
    ending = "0" if case.until and case.says.startswith("ended: ") else code
    return f"| {case.name} | {span} | {ending} | {case.then} |"


def shown(case: Case, text: str) -> str:
    """Return the line that the page shows for a case; "" where it has no such row."""
    start = f"| {case.name} | "
    rows = [line.removeprefix(start) for line in text.splitlines() if line.startswith(start)]
    return rows[0].rpartition(" | ")[0].rpartition(" | ")[0].strip("` ") if len(rows) == 1 else ""


def render(rows: Mapping[str, str]) -> str:
    """Return the whole page."""
    parts = [OPENING]
    for title, cases in CASES.items():
        head = f"## {title}\n\n| what is wrong | what is said | exit code | what happens then |\n|---|---|---|---|\n"
        parts.append(head + "".join(f"{rows[case.name]}\n" for case in cases))
    return "\n".join(parts)
