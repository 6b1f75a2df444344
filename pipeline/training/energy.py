"""Energy of a training run in joules, as far as the driver tells: NVML for GPUs, RAPL for CPUs."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the counters of Intel's and AMD's RAPL; often for root alone."""
_EVERY_S = 0.1
"""Between two samples of power: NVML's own average moves about as fast."""

Clock = Callable[[], float]


class Counter:
    """Joules of a hardware counter since ``start``; at ``wraps_at`` it begins again at 0."""

    def __init__(self, read: Callable[[], float], wraps_at: float | None = None) -> None:
        self._read = read
        self._wraps_at = wraps_at
        self._last = 0.0
        self.joules = 0.0
        self.sampled = wraps_at is not None
        """Whether it must be read now and then: two wraps between two readings would be lost."""

    def start(self) -> None:
        """Begin at the counter's present state."""
        self._last, self.joules = self._read(), 0.0

    def sample(self) -> None:
        """Take the counter's progress since the last reading."""
        now = self._read()
        step = now - self._last
        if step < 0 and self._wraps_at is not None:
            step += self._wraps_at
        # A counter without a known range that falls back was reset with its driver: what it lost is unknown.
        self.joules += max(0.0, step)
        self._last = now


class PowerIntegral:
    """Joules out of samples of power in watts, by the trapezoidal rule."""

    sampled = True

    def __init__(self, read: Callable[[], float], clock: Clock = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._last = (0.0, 0.0)
        self.joules = 0.0

    def start(self) -> None:
        """Begin at this moment."""
        self._last, self.joules = (self._clock(), self._read()), 0.0

    def sample(self) -> None:
        """Add the time since the last sample at the mean of both powers."""
        now, watts = self._clock(), self._read()
        before, power = self._last
        self.joules += (now - before) * (watts + power) / 2
        self._last = (now, watts)


Source = Counter | PowerIntegral


class EnergyMeter:
    """Joules of all sources together between ``start`` and ``stop``; None where nothing can be read.

    A context manager as well. Sources that must be sampled are read by a thread.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._running = self._broken = False

    @classmethod
    def of(cls, device: Any, gpus: Sequence[int] = ()) -> EnergyMeter:
        """Meter the GPUs with these CUDA indices where ``device`` is one, else this machine's CPU packages.

        With no index given it is the device's own. RAPL counts the whole package, whatever else runs on it.
        """
        if getattr(device, "type", str(device).partition(":")[0]) == "cuda":
            return cls(nvml_sources(gpus or (getattr(device, "index", None) or 0,)))
        return cls(rapl_sources(POWERCAP))

    def start(self) -> None:
        """Begin to count from 0."""
        self._broken = False
        self._each(lambda source: source.start())
        self._running = True
        self._end.clear()
        if not self._broken and any(source.sampled for source in self._sources):
            self._thread = threading.Thread(target=self._watch, daemon=True, name="energy")
            self._thread.start()

    def stop(self) -> float | None:
        """Stop counting and return the joules since ``start``, as ``joules`` does."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        found = self.joules()
        self._running = False
        return found

    def joules(self) -> float | None:
        """Return the joules so far; None without a source, or when one of them stopped answering."""
        if self._running:
            self._each(lambda source: source.sample())
        # A sum without one of its parts would be too low and look like a measurement.
        return None if self._broken or not self._sources else sum(each.joules for each in self._sources)

    def _watch(self) -> None:
        while not self._end.wait(_EVERY_S):
            self._each(lambda source: source.sample())

    def _each(self, do: Callable[[Source], None]) -> None:
        with self._lock:
            if self._broken:
                return
            try:
                for source in self._sources:
                    do(source)
            except (OSError, ValueError, _nvml_error()):
                self._broken = True

    def __enter__(self) -> EnergyMeter:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


# NVML ---------------------------------------------------------------------------------------------


def _nvml() -> Any | None:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _nvml_error() -> type[Exception]:
    nvml = _nvml()
    found: type[Exception] = nvml.NVMLError if nvml is not None else OSError
    return found


def nvml_sources(gpus: Sequence[int]) -> list[Source]:
    """Return one source for each CUDA index; none at all where one of them cannot be read.

    The counter of energy since the driver was loaded (Volta and later), else samples of power.
    """
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        nvml.nvmlInit()
        return [_gpu_source(nvml, _handle(nvml, index)) for index in gpus]
    except nvml.NVMLError:
        return []


def _handle(nvml: Any, index: int) -> Any:
    import torch

    # CUDA_VISIBLE_DEVICES renumbers CUDA's devices and not NVML's: the UUID is the same in both.
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")


def _gpu_source(nvml: Any, handle: Any) -> Source:
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        nvml.nvmlDeviceGetPowerUsage(handle)
        return PowerIntegral(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)  # milliwatts
    return Counter(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)  # millijoules


# RAPL ---------------------------------------------------------------------------------------------


def rapl_sources(folder: Path) -> list[Source]:
    """Return one source for each CPU package below ``folder``; none where any of them may not be read."""
    if not folder.is_dir():
        return []
    zones = [zone for zone in sorted(folder.iterdir()) if re.fullmatch(r"intel-rapl:\d+", zone.name)]
    try:
        # "psys" is the whole platform, in which the packages are counted already.
        packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
        return [_rapl_source(zone) for zone in packages]
    except (OSError, ValueError):
        return []


def _rapl_source(zone: Path) -> Source:
    def read() -> float:
        return int((zone / "energy_uj").read_text()) / 1e6

    read()
    return Counter(read, wraps_at=int((zone / "max_energy_range_uj").read_text()) / 1e6)
