"""All cases, group by group, in the order of docs/errors.md; and those of the command lines."""

# ruff: noqa: E501  what a program says stands here in one piece

from __future__ import annotations

from tests.bad_input import arrange
from tests.bad_input.case import AGENT_YAML, CONFIG, NOTHING, Case
from tests.bad_input.config_cases import CONFIGURATION
from tests.bad_input.device_cases import DATA, ENERGY, MODEL, STATE
from tests.bad_input.network_cases import NETWORK

STATUS = ("status", "--config", CONFIG)

COMMANDS = (
    Case(
        "unknown command",
        "skiptrain-agent: error: argument COMMAND: invalid choice: 'start' (choose from …)",
        2,
        NOTHING,
        arguments=("start",),
    ),
    Case(
        "unknown option",
        "skiptrain-agent: error: unrecognized arguments: --conf1g x",
        2,
        NOTHING,
        arguments=("run", "--conf1g", "x"),
    ),
    Case(
        "no command", "skiptrain-agent: error: the following arguments are required: COMMAND", 2, NOTHING, arguments=()
    ),
    Case(
        "`status` without an agent",
        "skiptrain-agent: /run/skiptrain/status.json is not there: no agent has run with this node.runtime_dir",
        1,
        "nothing is changed",
        arguments=STATUS,
    ),
    Case(
        "`peers` without an agent",
        "skiptrain-agent: /run/skiptrain/status.json is not there: no agent has run with this node.runtime_dir",
        1,
        "nothing is changed",
        arguments=("peers", "--config", CONFIG),
    ),
    Case(
        "`status` of an agent that was killed",
        "skiptrain-agent: the agent of a (process PID) has gone without a word; it was waiting",
        1,
        "nothing is changed",
        arrange=arrange.page_of_a_dead_agent,
        arguments=STATUS,
    ),
    Case(
        "`status` with a damaged page",
        "skiptrain-agent: /run/skiptrain/status.json: cannot be read: …",
        1,
        "nothing is changed",
        arrange=arrange.damaged_page,
        arguments=STATUS,
    ),
)


def sim(name: str, says: str, code: int, *words: str, then: str = NOTHING) -> Case:
    """Return a mistake made with skiptrain-sim."""
    return Case(name, f"skiptrain-sim: {says}", code, then, program="sim_harness", arguments=words)


def provision(name: str, says: str, *edits: tuple[str, str]) -> Case:
    """Return a mistake in an inventory."""
    words = ("render", "--inventory", CONFIG, "--out", "DIR/out")
    whole = ((AGENT_YAML, INVENTORY), *edits)
    line = f"skiptrain-provision: fleet.yaml:{says}"
    return Case(name, line, 78, "no file is written", whole, arrange.inventory, program="provisioning", arguments=words)


INVENTORY = """\
version: 1
fleet: home
defaults:
  run: {id: first, rounds: 6}
  model: {input_shape: [1, 8, 8], classes: 10}
  data: {source: digits}
nodes:
  - {range: "n[0-3]"}
"""

TOOLS = (
    sim(
        "unknown scenario",
        "there is no 'dmeo'; did you mean demo? (known: …); or give the path of a .yaml file",
        78,
        "plan",
        "dmeo",
    ),
    sim(
        "unknown policy",
        "--set policy.name=skiptrane: there is no 'skiptrane'; did you mean skiptrain? (known: d-psgd, greedy, skiptrain, skiptrain-constrained, skiptrain-replanned) (at policy.name)",
        78,
        "plan",
        "demo",
        "--set",
        "policy.name=skiptrane",
    ),
    sim(
        "scenario: `--set` of a bad value",
        "--set rounds=none: Expected `int`, got `str` (at rounds)",
        78,
        "plan",
        "demo",
        "--set",
        "rounds=none",
    ),
    sim(
        "scenario file missing", "DIR/none.yaml: cannot be read: No such file or directory", 78, "plan", "DIR/none.yaml"
    ),
    sim(
        "`--out` not empty",
        "--out DIR: there is something in it already; give a new folder, or remove that one",
        78,
        "live",
        "demo",
        "--out",
        "DIR",
    ),
    sim(
        "no broker at HOST:PORT",
        "no broker answers at 127.0.0.1:1: [Errno 111] Connection refused; start it, or use the broker 'embedded'",
        69,
        "live",
        "demo",
        "--broker",
        "127.0.0.1:1",
        "--out",
        "DIR/out",
    ),
    sim(
        "unknown broker",
        "broker 'mosquito' is not known; use 'embedded', 'mosquitto' or HOST:PORT",
        78,
        "live",
        "demo",
        "--broker",
        "mosquito",
        "--out",
        "DIR/out",
    ),
    sim(
        "report of a folder without a run",
        "DIR holds no finished run: DIR/summary.json: No such file or directory; give the folder of --out",
        65,
        "report",
        "DIR",
        then="nothing is changed",
    ),
    provision("inventory: unknown key", "2:1: unknown key `fleat` (at fleat)", ("fleet: home", "fleat: home")),
    provision(
        "inventory: a node twice",
        "9:5: n1 is named a second time here (at nodes[1])",
        ("  - {range", "  - {id: n1}\n  - {range"),
    ),
    provision(
        "inventory: unknown policy",
        "6:12: n0: there is no 'skiptrane'; did you mean skiptrain? (known: d-psgd, greedy, skiptrain, skiptrain-constrained, skiptrain-replanned) (at defaults.policy.name)",
        ("  data:", "  policy: {name: skiptrane}\n  data:"),
    ),
    provision(
        "inventory: bad range", "8:6: 'n[3-0]' is no range such as n[000-255] (at nodes[0].range)", ("n[0-3]", "n[3-0]")
    ),
)

CASES = {
    "The configuration": CONFIGURATION,
    "The data": DATA,
    "The model": MODEL,
    "The energy": ENERGY,
    "The state": STATE,
    "The network": NETWORK,
    "Commands": COMMANDS,
    "`skiptrain-sim` and `skiptrain-provision`": TOOLS,
}
