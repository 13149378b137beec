"""The command line of a device: `skiptrain-agent run | status | peers | export | doctor | energy`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agent import __version__
from agent.config import load_config
from agent.energy_cli import DEFAULT_CONFIG, add_energy, print_json
from agent.errors import AgentError
from agent.learning.export import FORMATS

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  argparse has no other name

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
    add_energy(commands)
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
        print_json(status)
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
        print_json(status.peers)
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
        print_json(report)
    else:
        print(summary(report))
    return report.exit_code


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
