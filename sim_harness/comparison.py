"""Runs beside each other: which are one thing with several seeds, what tells the others apart, what they came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sim_harness.measures import MEASURES, Measure
from sim_harness.outcome import Outcome, load_outcome
from sim_harness.shortfall import failed_trainings, missing_rounds

_NO_DIFFERENCE: Final = ("seed", "about", "version", "discovery", "engine.workers")
"""Settings, or sections of them, that do not make of a run another experiment."""
_OF_A_MACHINE: Final = ("timing",)
"""The same for real agents only: an emulation's clock takes them at their word."""
_RESTS_ON: Final = {
    "accuracy": ("data.source", "data.path", "data.layout", "model"),
    "accuracy over rounds": ("evaluation.samples",),
    "energy": ("nodes", "rounds", *(f"energy.{key}" for key in ("source", "devices", "workload", "files", "boards"))),
}
"""What a comparison of each needs to be the same in both runs."""
_NAMED: Final = 3
"""Differences that a label names; where they do not suffice, the folder's name does."""
_LONGEST: Final = 24
NOTHING: Final = "-"


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seed only; most often one."""

    label: str
    outcomes: tuple[Outcome, ...]
    note: str = ""
    """What its runs lack, and why it cannot be compared with the first group; or nothing."""

    @property
    def first(self) -> Outcome:
        """The run with the lowest seed."""
        return self.outcomes[0]

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs, ascending."""
        return [outcome.summary["seed"] for outcome in self.outcomes]

    def mean(self, name: str) -> float | None:
        """Return a measure's mean over the seeds; None if a run does not tell it."""
        values = self._values(name)
        return float(np.mean(values)) if values else None

    def std(self, name: str) -> float | None:
        """Return its sample standard deviation over the seeds; None for one seed."""
        values = self._values(name)
        if len(values) < 2:  # noqa: PLR2004
            return None
        return float(np.std(values, ddof=1)) if min(values) < max(values) else 0.0  # of equal ones not 1e-16

    def shown(self, measure: Measure) -> str:
        """Return mean, and standard deviation over the seeds where there are several, for people."""
        mean, std = self.mean(measure.name), self.std(measure.name)
        if mean is None:
            return NOTHING
        return measure.show(mean) if not std else f"{measure.show(mean)} ± {measure.show(std)}"

    def _values(self, name: str) -> list[float]:
        values = [outcome.numbers[name] for outcome in self.outcomes]
        known = [value for value in values if value is not None]
        return known if len(known) == len(values) else []


def load_groups(folders: Sequence[Path]) -> list[Group]:
    """Read the runs in `folders` and group them, in the order of their first run; `DataError` names a folder."""
    return grouped([load_outcome(folder) for folder in folders])


def grouped(outcomes: Sequence[Outcome]) -> list[Group]:
    """Put runs that differ in their seed only together; the same seed twice is not one experiment."""
    found: dict[tuple[str, int], list[Outcome]] = {}
    seen: Counter[tuple[str, int]] = Counter()
    for outcome in outcomes:
        what = repr(sorted(_experiment(outcome).items()))
        found.setdefault((what, seen[what, outcome.summary["seed"]]), []).append(outcome)
        seen[what, outcome.summary["seed"]] += 1
    parts = [tuple(sorted(part, key=lambda outcome: outcome.summary["seed"])) for part in found.values()]
    labels = _labels([part[0] for part in parts])
    return [Group(label, part, _notes(parts[0][0], part)) for label, part in zip(labels, parts, strict=True)]


def table_rows(groups: Sequence[Group]) -> Iterator[tuple[str, list[str]]]:
    """Yield the table that people read, one line after the other: heading, and a cell for each group."""
    if any(len(group.outcomes) > 1 for group in groups):
        yield "seeds", [", ".join(map(str, group.seeds)) for group in groups]
    for measure in MEASURES:
        cells = [group.shown(measure) for group in groups]
        if set(cells) != {NOTHING}:
            yield measure.heading, cells
    if any(group.note for group in groups):
        yield "note", [group.note for group in groups]


def as_row(group: Group) -> dict[str, Any]:
    """Return all numbers of a group, as compare.csv has them: each measure, and its standard deviation over seeds."""
    row: dict[str, Any] = {
        "label": group.label,
        "scenario": group.first.summary["scenario"],
        "policy": group.first.summary["policy"],
        "seeds": " ".join(map(str, group.seeds)),
        "note": group.note,
    }
    for measure in MEASURES:
        row[measure.name] = group.mean(measure.name)
        row[f"{measure.name}_seed_std"] = group.std(measure.name)
    return row


def within(key: str, sections: Sequence[str]) -> bool:
    """Tell whether a dotted key is one of `sections` or stands below one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys whose values are not the same, in the order of a scenario file."""
    keys = dict.fromkeys([*one, *other])
    return [key for key in keys if one.get(key) != other.get(key)]


def _experiment(outcome: Outcome) -> dict[str, Any]:
    none = _NO_DIFFERENCE if "virtual_s" in outcome.summary else (*_NO_DIFFERENCE, *_OF_A_MACHINE)
    return {key: value for key, value in outcome.settings.items() if not within(key, none)}


def _labels(outcomes: Sequence[Outcome]) -> list[str]:
    """Return scenario and policy of each, with what else tells it from those of the same scenario and policy."""
    plain = [f"{outcome.summary['scenario']}, {outcome.summary['policy']}" for outcome in outcomes]
    named = []
    for outcome, label in zip(outcomes, plain, strict=True):
        rivals = [_experiment(other) for other, same in zip(outcomes, plain, strict=True) if same == label]
        own = _experiment(outcome)
        keys = [key for key in own if any(own[key] != rival.get(key) for rival in rivals)]
        named.append(", ".join([label, *_terms(own, keys)[:_NAMED]]))
    count = Counter(named)
    return [
        f"{label} ({outcome.folder.resolve().name})" if count[label] > 1 else label
        for label, outcome in zip(named, outcomes, strict=True)
    ]


def _terms(settings: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Return what those settings are, in few words."""
    terms = {}
    for key in keys:
        if key in {"policy.train_rounds", "policy.sync_rounds"}:
            terms["schedule"] = f"Γ {settings.get('policy.train_rounds')}/{settings.get('policy.sync_rounds')}"
        elif key in {"topology.kind", "topology.degree"}:
            terms["topology"] = f"{settings.get('topology.kind')} {settings.get('topology.degree')}"
        else:
            text = str(settings[key])
            terms[key] = f"{key}={text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'}"
    return list(terms.values())


def shortfalls(outcomes: Sequence[Outcome]) -> str:
    """Return what runs of one experiment lack, each with its seed where there are several; nothing if all is there."""
    notes = []
    for outcome in outcomes:
        lacks = [words for tell in (missing_rounds, failed_trainings) if (words := tell(outcome.summary))]
        if lacks:
            which = f"seed {outcome.summary['seed']} " if len(outcomes) > 1 else ""
            notes.append(which + "; ".join(lacks))
    return "; ".join(notes)


def _notes(reference: Outcome, outcomes: Sequence[Outcome]) -> str:
    return "; ".join(filter(None, [shortfalls(outcomes), _note(reference, outcomes[0])]))


def _note(reference: Outcome, outcome: Outcome) -> str:
    """Return what of `outcome` does not compare with `reference`, and why."""
    keys = differences(reference.settings, outcome.settings)
    reasons = [
        f"{what} not comparable with the first: {', '.join(_change(reference, outcome, key) for key in found)}"
        for what, sections in _RESTS_ON.items()
        if (found := [key for key in keys if within(key, sections)])
    ]
    return "; ".join(reasons)


def _change(reference: Outcome, outcome: Outcome, key: str) -> str:
    then, now = (str(run.settings.get(key)) for run in (reference, outcome))
    if max(len(then), len(now)) > _LONGEST:
        return f"another {key}"
    return f"{key} {now}, not {then}"
