"""What this machine's processor can do: what a rule for engines may depend on, beside the model's shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_BF16_FLAGS: Final = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""The last one is ARM's."""


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """Facts that stay the same while the machine runs."""

    flags: frozenset[str]
    """As the kernel names them."""

    @property
    def bf16(self) -> bool:
        """Whether products in bf16 are faster than in fp32."""
        return not self.flags.isdisjoint(_BF16_FLAGS)


@lru_cache(maxsize=1)
def cpu_features() -> CpuFeatures:
    """Return what this machine has, read once."""
    return CpuFeatures(cpu_flags(_CPUINFO))


def cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Return the flags of the first processor, x86's or ARM's; none where the file does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()
