"""`python -m tests.bad_input [--write]`: run all cases, print what is said, and write docs/errors.md."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bad_input.cases import CASES
from tests.bad_input.page import PAGE, render, row, said, verdict
from tests.bad_input.run import Outcome, run


def main(words: list[str]) -> int:
    """Run the cases whose names hold one of `words`, all without any; write the page where that is asked for."""
    write = "--write" in words
    wanted = [word for word in words if word != "--write"]
    rows: dict[str, str] = {}
    wrong = 0
    for case in (case for cases in CASES.values() for case in cases):
        if wanted and not any(word in case.name for word in wanted):
            continue
        with TemporaryDirectory() as folder:
            outcome: Outcome = run(case, Path(folder))
        problem = verdict(case, outcome)
        wrong += bool(problem)
        print(f"{'WRONG' if problem else 'right'} {case.name}: {outcome.code} {outcome.lines[-1:]}")
        if problem:
            print(f"      {problem}", *outcome.lines, sep="\n      | ")
        rows[case.name] = row(case, said(case, outcome))
    if write and not wrong and not wanted:
        PAGE.write_text(render(rows), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
