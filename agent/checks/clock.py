"""Whether the year is sane, anything keeps the clock right, and it goes as fast as the monotonic one."""

from __future__ import annotations

from datetime import datetime, timezone

from agent.checks.check import Bench, Finding, failed, ok, warning

YEARS = range(2025, 2100)
"""Before the first of them there was no such agent: a board without a battery for its clock begins in 1970."""
JUMP_S = 1.0
MARKS = ("systemd/timesync/synchronized",)
"""Files below /run that are there once the clock was set; chronyd and ntpd tell the kernel."""
_FIX = "let systemd-timesyncd or chrony keep it right (timedatectl set-ntp true), and look at timedatectl status"


def check(bench: Bench) -> Finding:
    """Look at both clocks, the marks below /run, and what the kernel says."""
    host = bench.host
    wall = host.wall()
    jumped = wall - bench.began[0] - (host.monotonic() - bench.began[1])
    try:
        now = datetime.fromtimestamp(wall, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return failed(f"{wall:g} s since 1970 is no date", _FIX)
    line = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    if now.year not in YEARS:
        return failed(f"{line}: the year cannot be right", _FIX)
    marked = [mark for mark in MARKS if (host.run / mark).exists()]
    kernel = host.synchronised()
    if abs(jumped) > JUMP_S:
        return warning(f"{line}, which jumped by {jumped:+.1f} s during these checks", _FIX)
    if kernel or marked:
        return ok(f"{line}, synchronised ({'by the kernel' if kernel else marked[0]})")
    unknown = "nobody says whether it is synchronised" if kernel is None else "not synchronised"
    return warning(f"{line}, {unknown}", _FIX)
