"""Asks the kernel whether anything keeps its clock right, as chronyd, ntpd and systemd-timesyncd tell it."""

from __future__ import annotations

import ctypes

_UNSYNCHRONISED = 0x0040
"""STA_UNSYNC of <linux/timex.h>."""


class _Timex(ctypes.Structure):
    """The first fields of struct timex (adjtimex(2)), with room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("max_error", ctypes.c_long),
        ("estimated_error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def kernel_synchronised() -> bool | None:
    """Return the kernel's word; None where it gives none, as in many containers. Nothing is changed: modes is 0."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    state = _Timex()
    if adjtimex(ctypes.byref(state)) < 0:
        return None
    return not state.status & _UNSYNCHRONISED
