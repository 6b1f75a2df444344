"""What a training run takes: tokens, seconds, memory, energy and the share of the hardware that it uses."""

from __future__ import annotations

import json
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogumi.errors import RunError
from cogumi.store import disk_error
from pipeline.training.energy import EnergyMeter
from pipeline.training.flops import flops_per_token, forward_flops_per_token, peak_flops

__all__ = ["EnergyMeter", "Meter", "flops_per_token", "forward_flops_per_token", "peak_flops"]

_FILE = "meter.json"
_SAVED_EVERY_S = 10.0
_WINDOW_S = 30.0


@dataclass(frozen=True, slots=True)
class _Before:
    """What earlier processes of the same work took; ``joules`` is None where one of them could not tell."""

    seconds: float = 0.0
    joules: float | None = 0.0


class Meter:
    """Counts what training takes; call ``start``, ``count`` for every step, and ``metrics`` at the end.

    Rates are of this process, since a resume repeats the steps after its checkpoint. What is paid for, GPU
    hours and energy, is of all processes that worked on it: ``scratch`` keeps the sum beside the checkpoints.

    ``flops`` are those of one token (``flops_per_token``); None leaves the utilisation out. ``gpus`` are the
    CUDA indices of this host that work, by default the device's own; ``count`` takes the tokens of all
    of them. Of several processes one meters all GPUs and has the ``scratch``.

    Raises ``RunError`` naming the file when what an earlier process left there cannot be read.
    """

    def __init__(
        self,
        device: Any,
        *,
        flops: float | None = None,
        scratch: Path | None = None,
        gpus: Sequence[int] = (),
        energy: EnergyMeter | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device = device
        self._on_gpu = getattr(device, "type", str(device)) == "cuda"
        self._indices = (tuple(gpus) or (getattr(device, "index", None) or 0,)) if self._on_gpu else ()
        self._flops = flops
        self._peak = peak_flops(device)
        self._file = scratch / _FILE if scratch is not None else None
        self._energy = energy if energy is not None else EnergyMeter.of(device, self._indices)
        self._clock = clock
        self._before = self._load()
        self._start = self._saved = clock()
        self._ended: float | None = None
        self._aside = 0.0
        self._recent: deque[tuple[float, int]] = deque()
        self.tokens = 0
        self.supervised = 0
        self.padding = 0

    @property
    def gpus(self) -> int:
        """How many GPUs work; 0 on a CPU."""
        return len(self._indices)

    @property
    def seconds(self) -> float:
        """Seconds since ``start`` in this process, until ``stop``."""
        return (self._clock() if self._ended is None else self._ended) - self._start

    def start(self) -> None:
        """Begin: clock, energy and peak memory count from here."""
        if self._on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        self._start = self._saved = self._clock()
        self._ended, self._aside = None, 0.0
        self.tokens = self.supervised = self.padding = 0
        self._recent = deque([(0.0, 0)])
        self._energy.start()

    def count(self, tokens: int, *, supervised: int, padding: int) -> None:
        """Add one optimizer step: its tokens, those with a loss among them, and the padding beside them."""
        self.tokens += tokens
        self.supervised += supervised
        self.padding += padding
        worked = self.seconds - self._aside
        self._recent.append((worked, self.tokens))
        while len(self._recent) > 2 and self._recent[1][0] < worked - _WINDOW_S:
            self._recent.popleft()
        if self._clock() - self._saved >= _SAVED_EVERY_S:
            self._save()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time inside out of the rates, as for a held-out look; it is paid for all the same."""
        start = self.seconds
        try:
            yield
        finally:
            self._aside += self.seconds - start

    def facts(self) -> dict[str, float | int]:
        """Return what a progress line tells now: ``tok_s``, ``mfu``, ``gpu_seconds``, each where it is known.

        The rates are those of the last half minute.
        """
        (start, before), (end, now) = self._recent[0], self._recent[-1]
        rate = (now - before) / (end - start) if end > start else 0.0
        told: dict[str, float | int] = {"tok_s": round(rate)} if rate else {}
        share = self._utilization(rate)
        if rate and share is not None:
            told["mfu"] = round(share, 4)
        if self.gpus:
            told["gpu_seconds"] = round(self.gpus * (self._before.seconds + self.seconds), 3)
        return told

    def stop(self) -> None:
        """End the count and write what was taken beside the checkpoints."""
        if self._ended is not None:
            return
        if self._on_gpu:
            import torch

            torch.cuda.synchronize(self._device)
        self._energy.stop()
        self._ended = self._clock()
        self._save()

    def metrics(self) -> dict[str, float]:
        """Stop, and return what goes into ``StageResult.metrics``; what is unknown is absent and never 0.

        ``seconds`` and ``tokens_per_second`` (without the time that was set aside) are of this process;
        ``model_flop_utilization`` is that rate in FLOPs over the peak of all ``gpus``; ``peak_bytes`` is the
        most that this process held on its GPU, or on a CPU its resident set; ``joules``, and ``gpu_hours``
        where GPUs work, are of all processes that worked on this training.
        """
        self.stop()
        worked = self.seconds - self._aside
        rate = self.tokens / worked if self.tokens and worked > 0 else 0.0
        found = {"seconds": self.seconds, "tokens_per_second": rate, "gpus": float(self.gpus)}
        share = self._utilization(rate)
        if rate and share is not None:
            found["model_flop_utilization"] = share
        found["peak_bytes"] = float(self._peak_bytes())
        joules = self._joules()
        if joules is not None:
            found["joules"] = joules
        if self.gpus:
            found["gpu_hours"] = self.gpus * (self._before.seconds + self.seconds) / 3600
        return found

    def _utilization(self, rate: float) -> float | None:
        if self._flops is None or self._peak is None:
            return None
        return rate * self._flops / (self._peak * self.gpus)

    def _peak_bytes(self) -> int:
        if self._on_gpu:
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

    def _joules(self) -> float | None:
        here = self._energy.joules()
        return None if here is None or self._before.joules is None else self._before.joules + here

    def _load(self) -> _Before:
        if self._file is None or not self._file.is_file():
            return _Before()
        try:
            found = json.loads(self._file.read_text())
            joules = found["joules"]
            return _Before(float(found["seconds"]), None if joules is None else float(joules))
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Written by one rename, so no kill of ours cut it.
            raise RunError(f"{self._file}: unreadable ({error}); delete it and run again") from error

    def _save(self) -> None:
        self._saved = self._clock()
        if self._file is None:
            return
        partial = self._file.with_suffix(".partial")
        document = {"seconds": self._before.seconds + self.seconds, "joules": self._joules()}
        try:
            partial.write_text(json.dumps(document))
            partial.replace(self._file)
        except OSError as error:
            raise disk_error(error, partial) from error
