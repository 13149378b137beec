"""The section `network`: what is perfect, what is refused, and that real agents take a perfect one only."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from agent.errors import ConfigError
from sim_harness.live import run_live
from sim_harness.scenario import dump_scenario, load_scenario

CUT = "partitions=[{from_s: 1, to_s: 2, groups: [[n000], [n001, n002]]}]"
FAULTS = [
    "delay_s=[0, 0.1]",
    "delay_s=[0.1, 0.1]",
    "loss=0.01",
    "bandwidth_bytes_s=1000",
    CUT,
    "partitions=[{from_s: 0, to_s: 2, share: 0.5}]",
    "churn={mean_up_s: 5, mean_down_s: 1}",
    "churn={absences: [{node: n003, from_s: 0, to_s: 9}]}",
    "stragglers={share: 0.5, factor: 2}",
]
NONE = [
    "loss=0",
    "delay_s=[0, 0]",
    "churn={mean_up_s: 5, mean_down_s: 1, share: 0}",
    "stragglers={share: 0.5}",
    "stragglers={factor: 9}",
]


@pytest.mark.parametrize("setting", [*FAULTS, *NONE])
def test_what_is_perfect_is_known(setting: str, tmp_path: Path) -> None:
    """Only what befalls somebody counts; and what was written is read back."""
    scenario = load_scenario("demo", [f"network.{setting}"])
    assert scenario.network.is_perfect == (setting in NONE)
    path = tmp_path / "scenario.yaml"
    path.write_text(dump_scenario(scenario), encoding="utf-8")
    assert load_scenario(str(path)) == scenario


def test_a_scenario_has_a_perfect_network_by_default() -> None:
    """As real agents have, for all that the harness does."""
    assert load_scenario("demo").network.is_perfect


@pytest.mark.parametrize("setting", FAULTS)
def test_real_agents_take_no_faults(setting: str, tmp_path: Path) -> None:
    """Before anything is started or written."""
    with pytest.raises(ConfigError, match="network: real agents meet the network that there is"):
        run_live(load_scenario("demo", [f"network.{setting}"]), "embedded", tmp_path / "out", Console())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("delay_s=[2, 1]", "the least delay stands first: [1, 2] (at network.delay_s)"),
        ("delay_s=[0]", "at network.delay_s"),
        ("delay_s=[0, .inf]", "<= 86400"),
        ("loss=1", "< 1.0"),
        ("bandwidth_bytes_s=-1", ">= 0"),
        ("jitter_s=1", "unknown key `jitter_s`"),
        ("partitions=[{from_s: 2, to_s: 2, share: 0.5}]", "to_s must come after from_s (2)"),
        ("partitions=[{from_s: 1, to_s: 2}]", "give either `groups` or `share`"),
        ("partitions=[{from_s: 1, to_s: 2, share: 0.5, groups: [[n000]]}]", "give either `groups` or `share`"),
        (CUT.replace("n001", "n008"), "no such nodes: n008 (at network.partitions[0].groups)"),
        (CUT.replace("n001", "n000"), "a node stands here twice"),
        ("churn={mean_up_s: 5}", "mean_up_s and mean_down_s are given together"),
        ("churn={mean_up_s: 0, mean_down_s: 1}", "> 0"),
        ("churn={absences: [{node: n1, from_s: 0, to_s: 9}]}", "no such node: n1 (at network.churn.absences[0].node)"),
        ("churn={absences: [{node: n001, from_s: 9, to_s: 0}]}", "to_s must come after from_s (9)"),
        ("stragglers={factor: 0.5}", ">= 1"),
    ],
)
def test_what_cannot_be_is_said(setting: str, message: str) -> None:
    """With the place where it stands."""
    with pytest.raises(ConfigError) as caught:
        load_scenario("demo", [f"network.{setting}"])
    assert str(caught.value).startswith(f"--set network.{setting}: ")
    assert message in str(caught.value)
