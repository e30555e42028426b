"""What the generation of volumes costs on a device: seconds, joules where the device counts them, and the hardware's name.

NVIDIA GPUs count the board's energy (NVML, read through nvidia-ml-py); Linux counts that of CPU packages (RAPL, of Intel and
AMD; many systems let only root read it). Both count everything that the device does meanwhile, its idle power too. The other
part of the machine is not in it: a GPU's figure leaves out the CPU that feeds it.
"""

from __future__ import annotations

import logging
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

RAPL = Path("/sys/class/powercap")
CPU_INFO = Path("/proc/cpuinfo")
log = logging.getLogger(__name__)


class EnergyCounter(Protocol):
    """``source`` names the counter."""

    source: str

    def joules(self) -> float:
        """Return the joules since the counter was opened."""
        ...


class RaplCounter:
    """Joules of all CPU packages, from the counters that Linux keeps in ``intel-rapl:<n>`` folders.

    A counter starts again at zero after ``max_energy_range_uj`` (some 260 kJ: 40 minutes at 100 W); it must be read once in
    that time. Zones inside a package, and those of a whole platform (psys), would count the same energy twice.
    """

    source = "RAPL"

    def __init__(self, folder: Path = RAPL) -> None:
        """Open the counters below ``folder``.

        Raises:
            OSError: there are none, or they may not be read.
        """
        zones = sorted(zone for zone in folder.glob("intel-rapl:*") if zone.name.count(":") == 1)
        self._zones = [zone for zone in zones if _read(zone / "name").startswith("package")]
        if not self._zones:
            raise FileNotFoundError(f"{folder} holds no intel-rapl package")
        self._ranges = [int(_read(zone / "max_energy_range_uj")) for zone in self._zones]
        self._last = self._readings()
        self._used = 0

    def joules(self) -> float:
        now = self._readings()
        for before, after, largest in zip(self._last, now, self._ranges, strict=True):
            self._used += after - before if after >= before else after - before + largest
        self._last = now
        return self._used / 1e6

    def _readings(self) -> list[int]:
        return [int(_read(zone / "energy_uj")) for zone in self._zones]


class NvmlCounter:
    """Joules of one NVIDIA board, from the counter that its driver keeps since it was loaded, in mJ."""

    source = "NVML"

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Open the counter of a device's ``handle`` in the module ``nvml`` (pynvml).

        Raises:
            nvml.NVMLError: the device has no such counter (before Volta, or a part of a board).
        """
        self._nvml, self._handle = nvml, handle
        self._start = self._millijoules()

    def joules(self) -> float:
        return (self._millijoules() - self._start) / 1000

    def _millijoules(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


def energy_counter(device: torch.device) -> EnergyCounter | None:
    """Return the device's energy counter, or None where it tells none; the log says why."""
    try:
        return _nvml_counter(device) if device.type == "cuda" else RaplCounter()
    except OSError as error:
        log.info("no joules are told of the CPU: %s", error)
    except ModuleNotFoundError:
        log.info("no joules are told of the GPU: nvidia-ml-py is not installed")
    return None


def _nvml_counter(device: torch.device) -> NvmlCounter | None:
    import pynvml  # optional: only NVIDIA's driver is asked

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return NvmlCounter(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except pynvml.NVMLError as error:
        log.info("no joules are told of the GPU: %s", error)
        return None


@dataclass(frozen=True)
class Cost:
    """Seconds and joules of some work; None where the device tells no energy."""

    seconds: float
    joules: float | None


class Meter:
    """Measures pieces of work on a device: ``start()``, the work, ``stop()``. Both wait for what a GPU still computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._counter = device, energy_counter(device)
        self._hardware = hardware(device) | {"joules": self._counter.source if self._counter else None}
        self.start()

    @property
    def hardware(self) -> dict[str, Any]:
        """What `hardware` tells of the device, and ``joules``: the counter's name or None."""
        return self._hardware

    def start(self) -> None:
        self._begun = self._now()

    def stop(self) -> Cost:
        """Return the cost since the last start."""
        (before, spent), (now, total) = self._begun, self._now()
        return Cost(now - before, None if total is None or spent is None else total - spent)

    def _now(self) -> tuple[float, float | None]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), self._counter.joules() if self._counter else None


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the type of the device, its model's name, and how many threads a CPU computes with (None on a GPU)."""
    if device.type == "cuda":
        return {"device": "cuda", "name": torch.cuda.get_device_name(device), "threads": None}
    return {"device": device.type, "name": cpu_name(), "threads": torch.get_num_threads()}


def cpu_name(info: Path = CPU_INFO) -> str:
    """Return the CPU's model name as Linux has it, elsewhere as Python has it."""
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
