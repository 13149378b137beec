"""The command line of the harness: live, emulate, plan, demo, report, compare, grid, scenarios, bench."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent import __version__
from agent.errors import AgentError, ConfigError, OutputError
from sim_harness.arguments import add_scenario, console_with, resolve
from sim_harness.compare_command import add_compare
from sim_harness.grid_command import add_grid
from sim_harness.plan_command import add_plan
from sim_harness.scenario import Scenario, load_scenario, shipped

if TYPE_CHECKING:
    from rich.console import Console

DEMO_OUT = "build/demo"


_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The agents of a run must end with it, whether it is stopped, interrupted or its terminal closes."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Faults of a disk, not ours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (see docs/exit-codes.md)."""
    _take_any_text()
    args = _parser().parse_args(argv)
    former = {number: signal.signal(number, signal.default_int_handler) for number in _ENDING}
    try:
        code = int(args.command(args) or 0)
        sys.stdout.flush()
    except AgentError as error:
        print(f"skiptrain-sim: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stopped:
        print(f"skiptrain-sim: {str(stopped) or 'interrupted; all agents were stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read our output has gone, as `head` does
        _leave_output()
        return 1
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _leave_output()
        what = error.filename or "what is printed, or a file of the run,"
        print(f"skiptrain-sim: {what} cannot be written: {error.strerror}; make room", file=sys.stderr)
        return OutputError.exit_code
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return code


def _take_any_text() -> None:
    """Let a stream that cannot write a letter write `?` for it: a run must not end in an error of its last lines."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _leave_output() -> None:
    """Print the rest; where that cannot be, turn it to nowhere: Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skiptrain-sim", description=__doc__)
    parser.add_argument("--version", action="version", version=f"skiptrain-sim {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    live = commands.add_parser("live", help="run real agents on this machine")
    add_scenario(live)
    live.add_argument("--broker", default="embedded", help="embedded, mosquitto or HOST:PORT (embedded)")
    live.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder for all files of the run")
    live.set_defaults(command=_live)
    emulated = commands.add_parser("emulate", help="run a fleet on a virtual clock, by the device's own core")
    add_scenario(emulated)
    emulated.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a new folder for all files of the run"
    )
    emulated.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    emulated.set_defaults(command=_emulate)
    add_plan(commands)
    demo = commands.add_parser("demo", help="the demo scenario, its report, and D-PSGD's cost beside it")
    demo.add_argument("--broker", default="embedded")
    demo.add_argument("--out", type=Path, default=Path(DEMO_OUT), metavar="DIR")
    demo.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    demo.set_defaults(command=_demo)
    report = commands.add_parser(
        "report", help="table and plot of a run that is over; `compare DIR` makes its HTML page"
    )
    report.add_argument("dir", type=Path)
    report.set_defaults(command=_report)
    add_compare(commands)
    add_grid(commands)
    listed = commands.add_parser("scenarios", help="the scenarios that come with the harness")
    listed.set_defaults(command=_scenarios)
    bench = commands.add_parser("bench", help="local steps per second against a plain PyTorch loop, in one run")
    bench.add_argument(
        "cases",
        nargs="*",
        metavar="CASE",
        help="which ones (gn-lenet, small-28, digits-8; sync and scale by their names only)",
    )
    bench.add_argument("--nodes", type=_positive, default=0, metavar="N", help="nodes of a case")
    bench.add_argument("--steps", type=_positive, default=0, metavar="K", help="local steps of a node")
    bench.add_argument("--turns", type=_positive, default=3, metavar="N", help="of each side; the best counts (3)")
    bench.add_argument("--set", action="append", default=[], dest="overrides", metavar="engine.KEY=VALUE")
    bench.add_argument("--json", action="store_true", help="for programs")
    bench.set_defaults(command=_bench)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _live(args: argparse.Namespace) -> int:
    return _run(resolve(args), args.broker, args.out)


def _emulate(args: argparse.Namespace) -> int:
    scenario, console = resolve(args), console_with("matplotlib")
    from sim_harness.distributed import open_world
    from sim_harness.emulation import Stopped, run_emulated

    world = open_world()
    follows = world is not None and world.rank > 0
    console.quiet = follows
    console.print(f"{scenario.nodes} nodes, {scenario.rounds} rounds, {scenario.policy.name}; files in {args.out}")
    try:
        values = run_emulated(scenario, args.out, console, resume=args.resume, world=world)
    except Stopped:
        if follows:
            return 130  # the first process says it
        raise
    return 0 if follows else _show(values, args.out, console)


def _run(scenario: Scenario, broker: str, out: Path) -> int:
    console = console_with("matplotlib", *(["amqtt"] if broker == "embedded" else []))
    from sim_harness.live import run_live

    console.print(f"{scenario.nodes} agents, {scenario.rounds} rounds, {scenario.policy.name}; files in {out}")
    return _show(run_live(scenario, broker, out, console), out, console)


def _show(values: dict[str, Any], out: Path, console: Console) -> int:
    """Show the report of a run that has just ended; AgentError where a node is over its budget."""
    from sim_harness.report import show_report

    show_report(out, console)
    over = values["budget"]["overspent_nodes"]
    if over:
        raise AgentError(f"over budget: {', '.join(over)}; see {out / 'rounds.csv'}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    scenario = load_scenario("demo", args.overrides)
    _make_room(args.out)
    return _run(scenario, args.broker, args.out)


def _make_room(out: Path) -> None:
    """Remove what an earlier `demo` left in its own folder; a folder that somebody names is never cleared."""
    if out == Path(DEMO_OUT) and (out / "scenario.yaml").exists():
        shutil.rmtree(out)


def _report(args: argparse.Namespace) -> None:
    console = console_with("matplotlib")
    from sim_harness.report import show_report

    show_report(args.dir, console)


def _scenarios(_args: argparse.Namespace) -> None:
    line = "{:<18} {:>6} {:>6}  {:<22} {}"
    print(line.format("NAME", "NODES", "ROUNDS", "POLICY", "ABOUT"))
    for name in shipped():
        scenario = load_scenario(name)
        print(line.format(name, scenario.nodes, scenario.rounds, scenario.policy.name, scenario.about))


def _bench(args: argparse.Namespace) -> None:
    foreign = [setting for setting in args.overrides if not setting.startswith("engine.")]
    if foreign:
        raise ConfigError(f"bench: --set {foreign[0]}: only settings of the section `engine` matter here")
    engine = load_scenario("demo", args.overrides).engine
    console = None if args.json else console_with()
    from sim_harness.bench import Settings, run_bench, tables

    settings = Settings(engine, args.nodes, args.steps, args.turns)
    if console is None:
        print(json.dumps(msgspec.to_builtins(run_bench(args.cases, settings)), indent=2))
        return
    with console.status("bench") as status:
        results = run_bench(args.cases, replace(settings, say=status.update))
    for table in tables(results):
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
