"""`skiptrain-agent doctor`: looks at a device before, or while, its agent runs, and says what to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from agent.checks import (
    battery,
    broker,
    calibration,
    clock,
    configuration,
    data,
    disk,
    heat,
    mdns,
    memory,
    sensor,
    training,
)
from agent.checks.check import Bench, Check, Finding, Host, Status, blamed, failed, skipped
from agent.errors import AgentError

_log = logging.getLogger(__name__)

CHECKS: tuple[Check, ...] = (
    Check("configuration", 78, configuration.check, fix="correct the file (docs/configuration.md)"),
    Check("data", 65, data.check, ("configuration",), "correct the section data of the configuration"),
    Check("sensor", 72, sensor.check, ("configuration",), "enable the sensor (docs/profiles.md)"),
    Check("torch", 70, training.check, ("configuration", "data"), "install the torch build that fits this board"),
    Check("calibration", 76, calibration.check, ("sensor", "torch"), "look at the checks sensor and torch first"),
    Check("battery", 66, battery.check, ("configuration",), "mend the gauge, or do without it"),
    Check("broker", 69, broker.check, ("configuration",), "check the section mqtt of the configuration"),
    Check("mdns", 68, mdns.check, ("configuration",), "check the section discovery of the configuration"),
    Check("clock", 75, clock.check),
    Check("disk", 74, disk.check, ("configuration",), "check node.state_dir"),
    Check("memory", 71, memory.check, ("configuration",)),
    Check("temperature", 73, heat.check),
)
"""All checks, in the order in which they run; the first that fails gives the exit code.

The board is measured at rest before anything makes it work, and its temperature is looked at when it has worked.
To add one: a file in agent/checks with `check(bench)`, a line here, one in docs/doctor.md and docs/exit-codes.md.
"""


class Result(msgspec.Struct, frozen=True):
    """What became of one check; one entry of `--json`."""

    name: str
    status: Status
    detail: str
    fix: str
    exit_code: int
    """0 unless it failed."""
    seconds: float


class Report(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    ok: bool
    exit_code: int
    checks: tuple[Result, ...]


def examine(
    path: str,
    overrides: Sequence[str] = (),
    *,
    sysfs_root: str = "",
    host: Host | None = None,
    tell: Callable[[Result], None] = lambda _result: None,
) -> Report:
    """Run all checks on the device of the configuration at `path`; `tell` hears of each as it ends. Never raises."""
    host = host or Host()
    bench = Bench(path, tuple(overrides), host, sysfs_root, began=(host.wall(), host.monotonic()))
    results: dict[str, Result] = {}
    try:
        for check in CHECKS:
            results[check.name] = _result(check, bench, results)
            tell(results[check.name])
    finally:
        bench.close()
    code = next((result.exit_code for result in results.values() if result.status == "failed"), 0)
    return Report(code == 0, code, tuple(results.values()))


def lines(result: Result) -> list[str]:
    """Return one result for people: a line, and one with what to do."""
    fix = [f"{'':<23} fix: {result.fix}"] if result.fix else []
    return [f"{result.name:<14} {result.status:<8} {result.detail}", *fix]


def summary(report: Report) -> str:
    """Return the last line for people."""
    counts = {status: sum(result.status == status for result in report.checks) for status in ("failed", "warning")}
    if not any(counts.values()):
        return "all is well"
    return f"{counts['failed']} failed, {counts['warning']} warnings; exit code {report.exit_code}"


def _result(check: Check, bench: Bench, before: dict[str, Result]) -> Result:
    """Run one check, unless one that it needs has not succeeded."""
    began = time.monotonic()
    missing = [name for name in check.needs if before[name].status not in ("ok", "warning")]
    finding = skipped(_unmet(missing[0], before)) if missing else _find(check, bench)
    code = check.exit_code if finding.status == "failed" else 0
    one_line = " ".join(finding.detail.split())
    return Result(check.name, finding.status, one_line, finding.fix, code, round(time.monotonic() - began, 3))


def _unmet(name: str, before: dict[str, Result]) -> str:
    return f"{name} {'failed' if before[name].status == 'failed' else f'was skipped: {before[name].detail}'}"


def _find(check: Check, bench: Bench) -> Finding:
    """Run one check; whatever it raises is a failure of it."""
    try:
        return check.run(bench)
    except AgentError as error:
        _log.debug("the check %s", check.name, exc_info=True)
        return blamed(error, check.fix)
    except Exception as error:  # noqa: BLE001  a check that crashes must not hide what the others find
        _log.debug("the check %s", check.name, exc_info=True)
        return failed(
            f"the check itself failed: {type(error).__name__}: {error}",
            "report this with what `--log-level debug` says",
        )
