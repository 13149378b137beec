"""The command line of energy: `skiptrain-agent energy`, `energy record`, `energy audit`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent.config import load_config
from agent.errors import EnergyError, JournalError

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  argparse has no other name

DEFAULT_CONFIG = "/etc/skiptrain/agent.yaml"
MAX_SECONDS = 86_400 * 7
_STOPS = (signal.SIGINT, signal.SIGTERM)


def add_energy(commands: Commands) -> None:
    """Add `energy` and the commands below it."""
    text = "what each source of energy on this device says now"
    energy = commands.add_parser("energy", parents=[_energy_flags()], help=text, description=text)
    energy.add_argument("--seconds", type=_seconds, default=3.0, metavar="S", help="measure for so long (3)")
    energy.add_argument("--json", action="store_true", help="for programs")
    energy.set_defaults(command=_energy)
    text = "write what the selected source says to a file that an agent can replay"
    below = energy.add_subparsers(metavar="record | audit")
    record = below.add_parser("record", parents=[_energy_flags(again=True)], help=text, description=text)
    record.add_argument("--seconds", type=_seconds, required=True, metavar="S", help="record for so long")
    record.add_argument("--out", type=Path, required=True, metavar="FILE", help="the recording, such as trace.csv")
    record.add_argument("--force", action="store_true", help="replace a file that is there")
    record.set_defaults(command=_record)
    text = "take every decision in the journal again, and add up every joule"
    audit = below.add_parser("audit", parents=[_energy_flags(again=True)], help=text, description=text)
    audit.add_argument("--json", action="store_true", help="for programs")
    audit.set_defaults(command=_audit)


def _energy_flags(*, again: bool = False) -> argparse.ArgumentParser:
    """Return the flags that choose a source; `again`: those of a command below, which keep what was said before it."""
    flags = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS if again else "")
    flags.add_argument("--config", help="a device's configuration; without it none is needed")
    overrides: list[str] | str = argparse.SUPPRESS if again else []
    flags.add_argument(
        "--set", action="append", default=overrides, metavar="SECTION.KEY=VALUE", dest="overrides", help="win over it"
    )
    flags.add_argument("--profile", metavar="P", help="the kind of board: wins over node.profile")
    flags.add_argument("--source", metavar="NAME", help="the source to select: wins over energy.source")
    flags.add_argument("--sysfs-root", metavar="DIR", help="stands for /sys")
    return flags


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text}: more than 0 and at most {MAX_SECONDS} seconds")
    return seconds


def _energy(args: argparse.Namespace) -> None:
    from agent.energy_command import ask, measure, table

    asked = ask(args.config, args.overrides, args.profile, args.source, args.sysfs_root)
    with _progress("measuring", args.seconds) as progress:
        measured, problem = measure(asked, args.seconds, progress)
    if args.json:
        print_json(measured)
    else:
        for line in table(measured):
            print(line)
    sys.stdout.flush()
    if problem:
        raise EnergyError(problem)


def _record(args: argparse.Namespace) -> int:
    from agent.energy_command import ask
    from agent.energy_record import record

    asked = ask(args.config, args.overrides, args.profile, args.source, args.sysfs_root)
    stopped: list[int] = []
    before = {number: signal.signal(number, lambda got, _frame: stopped.append(got)) for number in _STOPS}
    try:
        with _progress("recording", args.seconds) as progress:
            done = record(
                asked, args.seconds, args.out, force=args.force, progress=progress, stopped=lambda: bool(stopped)
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        print(f"skiptrain-agent: {signal.Signals(stopped[0]).name}: ended early, and kept {done}", file=sys.stderr)
        return 130
    print(done)
    return 0


def _audit(args: argparse.Namespace) -> None:
    from agent.audit_command import as_json, audit_journal, lines

    config = load_config(args.config or DEFAULT_CONFIG, args.overrides)
    found, ledger = audit_journal(config)
    if args.json:
        print_json(as_json(config, found, ledger))
    else:
        print(*lines(config, found, ledger), sep="\n")
    sys.stdout.flush()
    if found.findings:
        raise JournalError(f"{config.node.state_dir}: {len(found.findings)} things in it do not follow from the rest")


@contextmanager
def _progress(verb: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """Give what shows the seconds that have passed, where a person may be looking."""
    shown = sys.stderr.isatty()

    def show(passed_s: float) -> None:
        if shown:
            print(f"\r{verb}: {passed_s:.0f} of {seconds:g} s", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def print_json(value: object) -> None:
    """Print a value for programs."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
