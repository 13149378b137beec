"""How far a long run is, and how much time is left."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LOOK_S, _LINE_S = 0.2, 30.0
_WINDOW_S = 120.0
"""The speed that the time left is told from is that of so much of the past."""


def progress_bar(console: Console) -> Progress:
    """Return a bar with how many, how long so far, and how much time is left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, speed_estimate_period=_WINDOW_S)


class Watch:
    """Shows a count that grows fast: a few times a second, or, where nobody sees a bar, in a line now and then."""

    def __init__(self, progress: Progress, what: str, total: int, done: int = 0) -> None:
        self._progress, self._due, self._what, self._total = progress, 0.0, what, total
        self._line_due = time.monotonic() + _LINE_S
        self._task = progress.add_task(what, total=total, completed=done)

    def reach(self, done: int, *, at_once: bool = False) -> None:
        """Show that so many are done."""
        now = time.monotonic()
        if at_once or now >= self._due:
            self._due = now + _LOOK_S
            self._progress.update(self._task, completed=done)
        if now >= self._line_due and not self._progress.console.is_terminal:
            self._line_due = now + _LINE_S
            left = self._progress.tasks[0].time_remaining
            ahead = "" if left is None else f", about {left / 60:.0f} min left"
            self._progress.console.print(f"{done:,} of {self._total:,} {self._what}{ahead}", highlight=False)
