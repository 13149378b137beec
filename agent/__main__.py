"""The command line of a device: `skiptrain-agent run | status | peers | export | doctor | energy`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent import __version__
from agent.config import load_config
from agent.errors import AgentError, EnergyError
from agent.learning.export import FORMATS

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  argparse has no other name

DEFAULT_CONFIG = "/etc/skiptrain/agent.yaml"
MAX_SECONDS = 86_400 * 7
_STOPS = (signal.SIGINT, signal.SIGTERM)
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (see docs/exit-codes.md)."""
    args = _parser().parse_args(argv)
    try:
        code = int(args.command(args) or 0)
        sys.stdout.flush()
    except AgentError as error:
        print(f"skiptrain-agent: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has enough
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skiptrain-agent", description=__doc__)
    parser.add_argument("--version", action="version", version=f"skiptrain-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", default=DEFAULT_CONFIG, help=f"the device's configuration ({DEFAULT_CONFIG})")
    common.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides", help="win over the file"
    )
    run = commands.add_parser("run", parents=[common], help="take part in the run until it is finished or stopped")
    run.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    run.set_defaults(command=_run)
    for name, command, text in (
        ("status", _status, "what the agent on this device is doing"),
        ("peers", _peers, "whom it knows, from which source, and how fresh that is"),
    ):
        sub = commands.add_parser(name, parents=[common], help=text)
        sub.add_argument("--json", action="store_true", help="for programs")
        sub.set_defaults(command=command)
    _add_export(commands, common)
    _add_doctor(commands, common)
    _add_energy(commands)
    return parser


def _add_export(commands: Commands, common: argparse.ArgumentParser) -> None:
    export = commands.add_parser(
        "export", parents=[common], help="write the newest model of the run as a file for an application"
    )
    export.add_argument("--format", required=True, choices=sorted(FORMATS), dest="format_")
    export.add_argument(
        "--out", type=Path, metavar="FILE", help="FLEET-RUN-rROUND.SUFFIX in this folder, where left out"
    )
    export.add_argument("--force", action="store_true", help="replace a file that is there")
    export.add_argument(
        "--class-names", type=_names, default=(), metavar="A,B,C", help="win over data.class_names and names of folders"
    )
    export.set_defaults(command=_export)


def _add_doctor(commands: Commands, common: argparse.ArgumentParser) -> None:
    doctor = commands.add_parser(
        "doctor", parents=[common], help="check this device, and say what to do about what is wrong"
    )
    doctor.add_argument("--profile", default="", metavar="P", help="the board's profile; wins over node.profile")
    doctor.add_argument("--sysfs-root", default="", metavar="DIR", help="what stands for /sys")
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.add_argument("--log-level", default="critical", choices=["debug", "info", "warning", "error", "critical"])
    doctor.set_defaults(command=_doctor)


def _add_energy(commands: Commands) -> None:
    text = "what each source of energy on this device says now"
    energy = commands.add_parser("energy", parents=[_energy_flags()], help=text, description=text)
    energy.add_argument("--seconds", type=_seconds, default=3.0, metavar="S", help="measure for so long (3)")
    energy.add_argument("--json", action="store_true", help="for programs")
    energy.set_defaults(command=_energy)
    text = "write what the selected source says to a file that an agent can replay"
    record = energy.add_subparsers(metavar="record").add_parser(
        "record", parents=[_energy_flags(again=True)], help=text, description=text
    )
    record.add_argument("--seconds", type=_seconds, required=True, metavar="S", help="record for so long")
    record.add_argument("--out", type=Path, required=True, metavar="FILE", help="the recording, such as trace.csv")
    record.add_argument("--force", action="store_true", help="replace a file that is there")
    record.set_defaults(command=_record)


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


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _run(args: argparse.Namespace) -> int:
    from agent.device import open_daemon
    from agent.service import Notifier

    _set_up_logging(args.log_level)
    daemon = open_daemon(load_config(args.config, args.overrides), Notifier(os.environ))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: daemon.stop(f"stopped by {signal.Signals(got).name}"))
    logging.getLogger("agent").info("ended: %s", daemon.run())
    return 0


def _status(args: argparse.Namespace) -> None:
    from agent.status import read_status

    status = read_status(Path(load_config(args.config, args.overrides).node.runtime_dir))
    if args.json:
        _print_json(status)
        return
    budget = "no budget" if status.budget_j is None else f"{status.left_j:.1f} of {status.budget_j:.1f} J left"
    print(
        f"{status.node} of fleet {status.fleet}, run {status.run}: {status.phase}, round {status.round}/{status.rounds}"
    )
    trained = f"trained in {status.trained} rounds"
    print(f"  decision    {trained if status.ended else f'{status.decision}; {trained}'}")
    if status.left_rounds is not None:
        budget = f"{budget}, {status.left_rounds} training rounds left"
    print(f"  energy      {status.spent_j:.1f} J spent on training, {budget} ({status.energy_source})")
    if status.energy:
        print(f"  no training {status.energy}")
    if status.ended:
        print(f"  ended       {status.ended}")
    else:
        print(f"  broker      {status.connection}")
        print(f"  peers       {status.peers_online} online, {status.neighbours} neighbours")
    refused = ", ".join(f"{count} {reason}" for reason, count in status.refused.items()) or "nothing"
    print(f"  refused     {refused}; {status.network.get('rejected', 0)} with a bad topic, presence or record")
    print(f"  journal     {status.journal_bytes} bytes written since the start")
    if status.disk:
        print(f"  disk        {status.disk}")


def _peers(args: argparse.Namespace) -> None:
    from agent.status import read_status

    status = read_status(Path(load_config(args.config, args.overrides).node.runtime_dir))
    if args.json:
        _print_json(status.peers)
        return
    if status.ended:
        print(f"the agent has ended ({status.ended}); as of then:")
    print(f"{'NODE':<32} {'ONLINE':<7} {'NEIGHBOUR':<10} {'ADDRESS':<16} SEEN BY (seconds ago)")
    for peer in status.peers:
        sources = ", ".join(f"{name} {age:.0f}" for name, age in sorted(peer.sources.items()))
        online, neighbour = ("yes" if flag else "no" for flag in (peer.online, peer.neighbour))
        print(f"{peer.node:<32} {online:<7} {neighbour:<10} {peer.address or '-':<16} {sources}")


def _export(args: argparse.Namespace) -> None:
    from agent.export_command import export

    config = load_config(args.config, args.overrides)
    for line in export(config, args.format_, args.out, force=args.force, class_names=args.class_names):
        print(line, file=sys.stderr if line.startswith("note: ") else sys.stdout)


def _doctor(args: argparse.Namespace) -> int:
    import json

    from agent.doctor import Result, examine, lines, summary

    _set_up_logging(args.log_level)
    overrides = [*args.overrides, *([f"node.profile={json.dumps(args.profile)}"] if args.profile else [])]

    def tell(result: Result) -> None:
        if not args.json:
            print(*lines(result), sep="\n", flush=True)

    report = examine(args.config, overrides, sysfs_root=args.sysfs_root, tell=tell)
    if args.json:
        _print_json(report)
    else:
        print(summary(report))
    return report.exit_code


def _energy(args: argparse.Namespace) -> None:
    from agent.energy_command import ask, measure, table

    asked = ask(args.config, args.overrides, args.profile, args.source, args.sysfs_root)
    with _progress("measuring", args.seconds) as progress:
        measured, problem = measure(asked, args.seconds, progress)
    if args.json:
        _print_json(measured)
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


def _print_json(value: object) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


class _JournalFormatter(logging.Formatter):
    """One line a record, with the priority that systemd's journal reads where it is the reader."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", " | ")
        return f"<{_PRIORITY.get(record.levelno, 6)}>{text}" if _journal_reads() else text


def _journal_reads() -> bool:
    """Say whether standard error goes to systemd's journal: terminals inherit the variable, not the stream."""
    stream = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


def _set_up_logging(level: str) -> None:
    handler = logging.StreamHandler()
    stamp = "" if _journal_reads() else "%(asctime)s %(levelname)s "
    handler.setFormatter(_JournalFormatter(f"{stamp}%(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


if __name__ == "__main__":
    sys.exit(main())
