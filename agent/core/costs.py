"""What a training round is believed to cost: learnt from the rounds that were measured.

The expected cost is the median of the last 9 rounds, so that one strange round changes no plan; what gets reserved is
half as much again as the 95 % quantile of the last 32, so that a fan that stops does not end every round early. A round
that the guard ended before its last local step counts with what a whole one would have cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.core.budget import Cost

KEPT = 32
"""Rounds that are remembered."""
MEDIAN_OF = 9
_QUANTILE = 0.95
_CALIBRATION_SHARE = 10
"""The part of the budget that is set aside for a round of a workload of which nobody knows the cost: 1/10.

Of the whole budget and not of what is left: a board that dies in each first round would begin ever more of them, each
charged less than the one before, and never be done.
"""


@dataclass(frozen=True, slots=True)
class CostHistory:
    """What the last training rounds of one workload cost on this device, as whole rounds, oldest first."""

    workload: str = ""
    """What was trained and measured, in the driver's words; another workload begins without a history."""
    seen: int = 0
    """How many rounds there have been in all."""
    recent_uj: tuple[int, ...] = ()
    load_uj: int | None = None
    """What a process spends on loading torch and data before its first local step; None: not known yet."""

    def after(self, whole_uj: int) -> CostHistory:
        """Return the history with one more round."""
        return replace(self, seen=self.seen + 1, recent_uj=(*self.recent_uj, max(1, whole_uj))[-KEPT:])

    def cost(self) -> Cost | None:
        """Return what is learnt from it; None before the first round."""
        if not self.recent_uj:
            return None
        last, ranked = sorted(self.recent_uj[-MEDIAN_OF:]), sorted(self.recent_uj)
        expected = (last[(len(last) - 1) // 2] + last[len(last) // 2]) // 2
        high = ranked[min(len(ranked) - 1, int(_QUANTILE * len(ranked)))]
        return Cost(expected, max(expected, high + high // 2))


def to_reserve(cost: Cost | None, left_uj: int | None, limit_uj: int | None, load_uj: int | None = 0) -> int:
    """Return what to set aside for one round, never more than what is left; None left means that nothing bounds it.

    `load_uj` is what loading torch and data costs besides; None: it is to be loaded, and nobody knows.
    """
    if left_uj is None:
        return 0 if cost is None else cost.upper_uj
    unknown = max(1, (limit_uj or 0) // _CALIBRATION_SHARE)
    upper = unknown if cost is None else cost.upper_uj
    if load_uj is not None:
        upper += load_uj + load_uj // 2
    elif cost is not None:
        upper += unknown
    return min(left_uj, upper)
