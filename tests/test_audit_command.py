"""`skiptrain-agent energy audit` on real journals: what it prints, and what a changed file makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.audit import Audit
from agent.audit_command import lines
from agent.config import AgentConfig, PolicySection, RunSection
from agent.core.budget import Ledger, Reservation
from agent.energy_config import BudgetSection, EnergySection
from agent.journal import Journal
from tests.core.alone import Alone
from tests.device_rig import device_config, write_config

COSTS = (900_000, 1_400_000, 1_000_000)


@pytest.fixture
def device(tmp_path: Path) -> AgentConfig:
    """Give a device whose run is over, with its journal."""
    config = device_config(
        tmp_path,
        run=RunSection(id="toy", rounds=30, roster=("a",)),
        policy=PolicySection(name="skiptrain-replanned", train_rounds=2, sync_rounds=1),
        energy=EnergySection(source="rapl", budget=BudgetSection(joules=12)),
    )
    write_config(config, tmp_path / "agent.yaml")
    alone = Alone(config.descriptor(), COSTS, Ledger(12_000_000))
    journal = Journal(Path(config.node.state_dir))
    for record in alone.go():
        journal.append(replace(record, share_uj=10_000, idle_uj=None))
    assert alone.saved is not None
    journal.save_state(alone.saved)
    journal.close()
    return config


def test_an_audit_explains_a_journal(device: AgentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every decision, every joule; sharing besides; no sensor and no agent are needed for it."""
    assert main(["energy", "audit", "--config", str(tmp_path / "agent.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"a, run toy: 30 rounds in the journal, {len(trained(device))} to train in\n")
    assert "30 taken again, 0 that came too late to be taken, 0 of another run or release" in out
    assert "0.300 J for sharing, 0.000 J in no round" in out
    assert "a budget of 12.000 J; over by 0.000 J at most" in out
    assert out.endswith("every decision follows from the ledger, and every joule is in it\n")


def trained(device: AgentConfig) -> list[int]:
    """Return the numbers of the lines whose rounds were trained."""
    lines = rounds(device).read_text().splitlines()
    return [i for i, line in enumerate(lines) if json.loads(line)["decision"]["train"]]


def rounds(device: AgentConfig) -> Path:
    """Return the file of records."""
    return Path(device.node.state_dir) / "rounds.jsonl"


def test_a_joule_taken_out_of_the_file_is_found(
    device: AgentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code 74; the round is named, and the JSON has it too."""
    lines = rounds(device).read_text().splitlines()
    which = trained(device)[1]
    record = json.loads(lines[which])
    lines[which] = json.dumps({**record, "energy_uj": record["energy_uj"] - 1})
    rounds(device).write_text("\n".join(lines) + "\n")
    command = ["energy", "audit", "--config", str(tmp_path / "agent.yaml")]
    assert main(command) == 74
    said = capsys.readouterr()
    assert f"WRONG       round {which}: 1 uJ more were charged than it says that it spent" in said.out
    assert said.err.count("\n") == 1
    assert "1 things in it do not follow from the rest" in said.err
    assert main([*command, "--json"]) == 74
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], [each["round"] for each in found["findings"]]) == (False, [which])


def test_settings_of_another_run_are_told_apart(
    device: AgentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another seed the decisions cannot be taken again; the joules are added up all the same."""
    assert device.run.seed == 1
    assert main(["energy", "audit", "--config", str(tmp_path / "agent.yaml"), "--set", "run.seed=2"]) == 0
    out = capsys.readouterr().out
    assert "0 taken again, 0 that came too late to be taken, 30 of another run or release" in out
    assert out.endswith(
        "30 of 30 decisions could not be taken again, only their joules were added up: --config must be that of the "
        "run\n"
    )


def test_lines_that_a_power_cut_took_are_said(
    device: AgentConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not wrong, code 0; but not every joule is explained."""
    lines = rounds(device).read_text().splitlines()
    rounds(device).write_text("\n".join([*lines[:4], *lines[7:]]) + "\n")
    assert main(["energy", "audit", "--config", str(tmp_path / "agent.yaml")]) == 0
    out = capsys.readouterr().out
    assert "  missing     3 rounds have no record" in out
    assert out.endswith("what the missing rounds spent is in the ledger alone\n")


def test_what_an_interrupted_training_forfeited_is_said(tmp_path: Path) -> None:
    """Nothing was trained, and the ledger has joules all the same."""
    ledger = Ledger(500_000_000).reserve(Reservation("toy", 0, 100_000_000)).forfeit()
    said = list(lines(device_config(tmp_path), Audit(), ledger))
    assert "  forfeited   100.000 J of trainings that were interrupted" in said
    assert said[-1] == "  audit       no decision could be taken again, only joules were added up"


def test_a_device_without_a_journal_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, code 74."""
    path = write_config(device_config(tmp_path), tmp_path / "agent.yaml")
    assert main(["energy", "audit", "--config", str(path)]) == 74
    assert "no agent has kept a journal there" in capsys.readouterr().err
