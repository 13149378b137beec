"""The table of transitions decides every pair, the machine obeys it, and ARCHITECTURE.md shows it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from agent.core import events as ev
from agent.core.round_machine import _HANDLERS
from agent.core.round_state import Phase
from agent.core.transitions import TRANSITIONS, Do, state_diagram
from agent.core.types import NodeId, Quality, Roster
from agent.errors import ContractViolation
from tests.core.cluster import N_PARAMS
from tests.core.machines import events_of_all_kinds, machine_in

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- state diagram: made from agent/core/transitions.py -->", "<!-- end -->"
PAIRS = [(phase, event) for phase in Phase for event in get_args(ev.Event)]
REFUSED = [pair for pair in PAIRS if TRANSITIONS[pair[0]][pair[1]].do is Do.REFUSE]
TAKEN = [pair for pair in PAIRS if pair not in REFUSED]


def pair_id(value: object) -> str:
    """Return a readable test id."""
    return value.value if isinstance(value, Phase) else getattr(value, "__name__", "")


def test_table_decides_every_pair_of_phase_and_event() -> None:
    """No event is forgotten in any phase, and none is listed that does not exist."""
    assert set(TRANSITIONS) == set(Phase)
    for phase, rules in TRANSITIONS.items():
        assert list(rules) == list(get_args(ev.Event)), phase


def test_every_do_has_a_handler_and_is_used() -> None:
    """What the table asks for can be done, and all that can be done is asked for."""
    assert set(_HANDLERS) == set(Do)
    assert {rule.do for rules in TRANSITIONS.values() for rule in rules.values()} == set(Do)


def test_refused_and_ignored_events_lead_nowhere() -> None:
    """A phase changes by something that is done, and nothing leads out of DONE."""
    for phase, event in REFUSED:
        assert not TRANSITIONS[phase][event].leads_to
    assert not any(rule.leads_to for rule in TRANSITIONS[Phase.DONE].values())


@pytest.mark.parametrize(("phase", "event"), REFUSED, ids=pair_id)
def test_refused_pair_is_a_contract_violation(phase: Phase, event: type[ev.Event]) -> None:
    """A driver that breaks the contract hears of it at once, with the event and the phase in the message."""
    machine = machine_in(phase)
    with pytest.raises(ContractViolation, match=rf"{event.__name__} cannot happen while {phase.value}"):
        machine.handle(events_of_all_kinds(machine)[event], 1e6)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize(("phase", "event"), TAKEN, ids=pair_id)
def test_taken_pair_leads_where_the_table_says(phase: Phase, event: type[ev.Event], late: bool) -> None:
    """Whatever comes, before the deadline or after it has passed unnoticed, leads only to a phase that is listed."""
    machine = machine_in(phase)
    machine.handle(events_of_all_kinds(machine)[event], 1e6 if late else 3.0)
    assert machine.phase in TRANSITIONS[phase][event].leads_to | {phase}


def test_bytes_refused_after_the_deadline_do_not_break_the_machine() -> None:
    """A hostile message that is handed in just before the timer ends the round like any other event."""
    machine = machine_in(Phase.COLLECTING)
    round_ = machine.round
    machine.handle(ev.UpdateRejected("checksum"), 1e6)
    assert machine.round > round_


def test_answer_of_another_round_is_a_contract_violation() -> None:
    """A TrainingFinished must name the round that trains."""
    machine = machine_in(Phase.TRAINING)
    answer = ev.TrainingFinished(machine.round + 1, np.zeros(N_PARAMS, np.float32), 0.5, 10, Quality.REPLAYED)
    with pytest.raises(ContractViolation, match="while round 0 was training"):
        machine.handle(answer, 3.0)


@pytest.mark.parametrize("when", [0.5, 19.0])
def test_a_deadline_that_is_early_changes_nothing(when: float) -> None:
    """A timer that fires before `deadline` is ignored: drivers may round."""
    machine = machine_in(Phase.COLLECTING)
    before = (machine.phase, machine.round, machine.deadline)
    assert machine.handle(ev.DeadlineReached(), when) == ()
    assert (machine.phase, machine.round, machine.deadline) == before


def test_state_diagram_is_stable_and_whole() -> None:
    """The drawing names every phase and each way between two of them once."""
    text = state_diagram()
    assert text == state_diagram()
    assert text.startswith("stateDiagram-v2\n    [*] --> idle\n")
    drawn = re.findall(r"^    (\w+) --> (\w+): ", text, flags=re.MULTILINE)
    leads = {(p.value, t.value) for p, rules in TRANSITIONS.items() for rule in rules.values() for t in rule.leads_to}
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == leads


def test_architecture_page_shows_the_diagram_of_the_table() -> None:
    """The state diagram that people read cannot differ from the table that the machine obeys."""
    page = ROOT / "ARCHITECTURE.md"
    made = "`.venv/bin/python -m agent.core.transitions`"
    how = f"put the output of {made}, as a ```mermaid block, between {BEGIN} and {END} in {page.name}"
    assert page.exists(), how
    text = page.read_text(encoding="utf-8")
    assert BEGIN in text, how
    shown = text.split(BEGIN, 1)[1].split(END, 1)[0]
    assert shown.strip() == f"```mermaid\n{state_diagram()}```", how


def test_roster_epoch_that_is_not_newer_is_told_and_ignored() -> None:
    """An epoch that is known already changes nothing and costs a notice."""
    machine = machine_in(Phase.COLLECTING)
    before = (machine.phase, machine.deadline, machine.snapshot())
    (notice,) = machine.handle(ev.RosterChanged(Roster(0, (NodeId("z"),), 9)), 3.0)
    assert "not newer" in str(notice)
    assert (machine.phase, machine.deadline, machine.snapshot()) == before
