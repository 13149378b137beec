"""NVIDIA's counters, with a stand-in for the module pynvml: millijoules become microjoules."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field

import pytest

from agent.energy import nvml
from agent.energy.source import AbsentError, Place, Scope, Wanted
from agent.errors import EnergyError

NOTHING = Wanted()


class NVMLError(Exception):
    """As pynvml's: a number and its text."""

    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


@dataclass
class Driver:
    """Stands in for pynvml: GPUs by their millijoules, or the error that asking gives."""

    counters: list[int | NVMLError] = field(default_factory=lambda: [1_234_567_890_123, 5])
    trouble: NVMLError | None = None
    NVMLError = NVMLError

    def nvmlInit(self) -> None:  # noqa: N802  pynvml's name
        """Begin."""
        if self.trouble:
            raise self.trouble

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802  pynvml's name
        """Return how many GPUs there are."""
        return len(self.counters)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802  pynvml's name
        """Return what stands for a GPU."""
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802  pynvml's name
        """Return millijoules."""
        counter = self.counters[handle]
        if isinstance(counter, NVMLError):
            raise counter
        return counter


def find(driver: object, wanted: Wanted = NOTHING) -> nvml.NvmlReader:
    """Find a reader."""
    return nvml.find(Place(nvml=driver), wanted)


def test_all_gpus() -> None:
    """In microjoules; beginning anew is a reset."""
    driver = Driver()
    reader = find(driver)
    assert (reader.rails, reader.scope, reader.ranges_uj) == (("gpu0", "gpu1"), Scope.GPU, (0, 0))
    assert (reader.read(), reader.resolution_uj) == ((1_234_567_890_123_000, 5_000), 2_000)
    driver.counters[1] = 6
    assert reader.read()[1] == 6_000


def test_one_gpu() -> None:
    """By name; the message lists those that are there."""
    assert find(Driver(), Wanted(rails=("gpu1",))).read() == (5_000,)
    with pytest.raises(EnergyError, match=r"no gpu2; there are gpu0, gpu1; correct energy\.rails"):
        find(Driver(), Wanted(rails=("gpu2",)))


def test_not_supported() -> None:
    """A GPU before Volta, or a Jetson's: there, and of no use."""
    with pytest.raises(EnergyError, match=r"gpu1 says no energy \(Not Supported\)") as raised:
        find(Driver([7, NVMLError(3, "Not Supported")]))
    assert not isinstance(raised.value, AbsentError)


def test_absent() -> None:
    """No driver, no library, no GPU."""
    for value, text in ((9, "Driver Not Loaded"), (12, "NVML Shared Library Not Found")):
        with pytest.raises(AbsentError, match=text):
            find(Driver(trouble=NVMLError(value, text)))
    with pytest.raises(AbsentError, match="knows no GPU"):
        find(Driver([]))


def test_a_driver_that_refuses() -> None:
    """There, and may not be asked."""
    with pytest.raises(EnergyError, match="Insufficient Permissions") as raised:
        find(Driver(trouble=NVMLError(4, "Insufficient Permissions")))
    assert not isinstance(raised.value, AbsentError)


def test_vanishing() -> None:
    """A GPU falls off its bus between two readings."""
    driver = Driver()
    reader = find(driver)
    driver.counters[0] = NVMLError(15, "GPU is lost")
    with pytest.raises(EnergyError, match=r"gpu0 says no energy \(GPU is lost\)"):
        reader.read()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One line, no cause behind it, and nothing in the log."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level(logging.DEBUG), pytest.raises(AbsentError, match="pynvml is not installed") as raised:
        find(None)
    assert raised.value.__suppress_context__
    assert not caplog.records
