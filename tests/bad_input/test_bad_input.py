"""Each case with the real program: one line, its code, no traceback, nothing lost; and its row in docs/errors.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bad_input.case import Case
from tests.bad_input.cases import CASES
from tests.bad_input.page import PAGE, render, row, shown, verdict
from tests.bad_input.run import pattern, run

ALL = [case for cases in CASES.values() for case in cases]


@pytest.mark.parametrize("case", ALL, ids=[case.name for case in ALL])
def test_a_mistake_is_one_line_and_loses_nothing(case: Case, tmp_path: Path) -> None:
    """What the program says and how it ends is what the case expects, and what the page tells its reader."""
    outcome = run(case, tmp_path)
    assert verdict(case, outcome) == "", "\n".join(outcome.lines)
    on_page = shown(case, PAGE.read_text(encoding="utf-8"))
    assert pattern(case.says).fullmatch(on_page), "python -m tests.bad_input --write"


def test_the_page_has_the_rows_of_the_cases_and_nothing_else() -> None:
    """Its text and the order of its rows are those of the cases; the lines in them are checked one by one above."""
    text = PAGE.read_text(encoding="utf-8")
    assert len({case.name for case in ALL}) == len(ALL)
    assert render({case.name: row(case, shown(case, text)) for case in ALL}) == text


def test_the_pages_on_errors_and_codes_know_each_other() -> None:
    """Whoever finds one finds the other, and each code of a case is explained."""
    codes = (PAGE.parent / "exit-codes.md").read_text(encoding="utf-8")
    assert "(errors.md)" in codes
    explained = {int(code) for code in re.findall(r"^\| (\d+) \|", codes, re.MULTILINE)}
    assert {case.code or 0 for case in ALL} <= explained
