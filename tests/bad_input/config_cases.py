"""Mistakes in agent.yaml and in `--set`."""

# ruff: noqa: E501  what a program says stands here in one piece

from __future__ import annotations

from tests.bad_input import arrange
from tests.bad_input.case import NOTHING, RUN, Case


def config_case(name: str, says: str, *edits: tuple[str, str]) -> Case:
    """Return a mistake in the configuration's text."""
    return Case(name, f"skiptrain-agent: /etc/skiptrain/agent.yaml{says}", 78, NOTHING, edits)


def set_case(name: str, setting: str, says: str) -> Case:
    """Return a mistake in a `--set`."""
    return Case(name, f"skiptrain-agent: --set {setting}: {says}", 78, NOTHING, arguments=(*RUN, "--set", setting))


CONFIGURATION = (
    config_case("unknown key", ":9:3: unknown key `round` (at run.round)", ("rounds:", "round:")),
    config_case("wrong type", ":9:3: Expected `int`, got `str` (at run.rounds)", ("rounds: 6", "rounds: many")),
    config_case("value out of range", ":9:3: Expected `int` >= 1 (at run.rounds)", ("rounds: 6", "rounds: 0")),
    config_case("key missing", ":7:1: the key `rounds` is missing here (at run)", ("  rounds: 6\n", "")),
    config_case("not YAML", ":11:…: …", ("[a, b]", "[a, b")),
    config_case("a key twice", ":10:3: `rounds` stands here twice", ("rounds: 6", "rounds: 6\n  rounds: 7")),
    config_case(
        "a value that is no name",
        ":3:3: 'Kitchen!' is no name: use a-z, 0-9 and single hyphens inside, at most 31 characters (at node.id)",
        ("id: a", "id: Kitchen!"),
    ),
    config_case(
        "unknown choice",
        ":15:3: there is no 'digit'; did you mean digits? (known: cifar10, digits, fashion-mnist, folder, idx, npz) (at data.source)",
        ("source: digits", "source: digit"),
    ),
    config_case(
        "unknown layout",
        ":16:3: there is no 'hwc'; did you mean nhwc? (known: auto, nchw, nhw, nhwc) (at data.layout)",
        ("source: digits", "source: digits\n  layout: hwc"),
    ),
    config_case(
        "an interface's name for its address",
        ":22:16: 'eth0' is no IPv4 address; give that of the interface (at discovery.interfaces[0])",
        ("mdns: false", "mdns: true\n  interfaces: [eth0]"),
    ),
    config_case(
        "no energy row",
        ":14:1: energy: no published row for cifar10/toaster; there are cifar10/galaxy-s22-ultra, cifar10/oneplus-nord-2, cifar10/poco-x3, cifar10/xiaomi-12-pro, femnist/galaxy-s22-ultra, femnist/oneplus-nord-2, femnist/poco-x3, femnist/xiaomi-12-pro (at energy)",
        ("data:", "energy: {device: toaster}\ndata:"),
    ),
    config_case(
        "energy source unknown",
        ":14:10: there is no 'solar' (known: auto, estimate, ina, jetson-iio, nvml, power-supply, rapl, recording, rpi-pmic, trace) (at energy.source)",
        ("data:", "energy: {source: solar}\ndata:"),
    ),
    config_case(
        "infinite budget",
        ":14:10: Expected `float` <= 1000000.0 (at energy.budget_scale)",
        ("data:", "energy: {budget_scale: .inf}\ndata:"),
    ),
    config_case(
        "two budgets",
        ":14:24: one of joules, rounds, not all of them (at energy.budget)",
        ("data:", "energy: {source: rapl, budget: {joules: 5, rounds: 3}}\ndata:"),
    ),
    config_case(
        "a measured source without a budget",
        ":14:1: skiptrain-constrained needs a budget: energy.budget.joules, joules_per_day, battery_share or rounds (at energy)",
        ("data:", "energy: {source: rapl}\ndata:"),
    ),
    config_case(
        "board without a sensor, and no opt-in to an estimate",
        ":4:3: this board has no sensor of energy: to budget by an estimate, set energy.source: estimate (at node.profile)",
        ("  id: a\n", "  id: a\n  profile: raspberry-pi-4b\n"),
    ),
    config_case(
        "profile unknown",
        ":4:3: profile: there is no 'raspberry-pi-6'; … (at node.profile)",
        ("  id: a\n", "  id: a\n  profile: raspberry-pi-6\n"),
    ),
    config_case(
        "more threads than the board's profile allows",
        ":15:12: raspberry-pi-5 has 4 at most (at learning.threads)",
        ("  id: a\n", "  id: a\n  profile: raspberry-pi-5\n"),
        ("data:", "learning: {threads: 8}\nenergy: {budget: {joules: 9}}\ndata:"),
    ),
    config_case(
        "a board that cannot train, told to",
        ":5:3: raspberry-pi-zero-2-w cannot train: … (at node.role)",
        ("  id: a\n", "  id: a\n  profile: raspberry-pi-zero-2-w\n  role: train\n"),
    ),
    config_case(
        "nobody to run with",
        ":7:1: say who belongs to the run: `roster: [ids]`, or `expect_nodes: N` to take whoever is found (at run)",
        ("roster: [a, b]", "seed: 1"),
    ),
    config_case(
        "not in the roster",
        ":10:3: the roster does not list this node, a (at run.roster)",
        ("roster: [a, b]", "roster: [b, c]"),
    ),
    config_case(
        "no way to the broker",
        ":16:1: no way to find the broker: set mqtt.host, or leave discovery.mdns on (at mqtt)",
        ("  host: 127.0.0.1\n", ""),
    ),
    config_case(
        "input too small for the model",
        ":11:1: model.input_shape is [3, 4, 4]; gn-lenet needs channels, height, width of at least [1, 8, 8]; for smaller inputs take small-cnn (at model)",
        ("input_shape: [1, 8, 8]", "name: gn-lenet\n  input_shape: [3, 4, 4]"),
    ),
    config_case(
        "model too large to share",
        ":11:1: 998480234 parameters are more than 16000000, what peers can take in: make it smaller (at model)",
        ("input_shape: [1, 8, 8]", "name: gn-lenet\n  input_shape: [3, 9999, 9999]"),
    ),
    Case(
        "empty file",
        "skiptrain-agent: /etc/skiptrain/agent.yaml:1:1: the key `version` is missing here",
        78,
        NOTHING,
        arrange=arrange.comment_as_config,
    ),
    Case(
        "no such file",
        "skiptrain-agent: /etc/skiptrain/agent.yaml: cannot be read: No such file or directory",
        78,
        NOTHING,
        arrange=arrange.no_config,
    ),
    Case(
        "a folder instead of a file",
        "skiptrain-agent: /etc/skiptrain/agent.yaml: cannot be read: Is a directory",
        78,
        NOTHING,
        arrange=arrange.folder_as_config,
    ),
    Case(
        "password file missing",
        "skiptrain-agent: mqtt.password_file DIR/none: cannot be read: No such file or directory",
        78,
        NOTHING,
        (("  port: 1\n", "  port: 1\n  username: a\n  password_file: DIR/none\n"),),
    ),
    set_case("`--set` of an unknown section", "rum.rounds=6", "unknown key `rum` (at rum)"),
    set_case("`--set` of an unknown key", "run.round=6", "unknown key `round` (at run.round)"),
    set_case("`--set` of a bad value", "run.rounds=x", "Expected `int`, got `str` (at run.rounds)"),
    set_case("`--set` without a value", "run.rounds", "write it as section.key=value, such as policy.name=d-psgd"),
)
