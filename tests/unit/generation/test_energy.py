from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuromf.generation import energy
from neuromf.generation.energy import Meter, NvmlCounter, RaplCounter, cpu_name, energy_counter


class NvmlError(Exception):
    pass


class Nvml:
    """The part of pynvml that is used, with the counters of boards by UUID, in mJ."""

    NVMLError = NvmlError

    def __init__(self, **boards: int) -> None:
        self.boards = boards

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid.removeprefix("GPU-") not in self.boards:
            raise NvmlError("Not Found")
        return uuid.removeprefix("GPU-")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self.boards[handle]


@pytest.fixture
def rapl(tmp_path: Path) -> Any:
    """Write a zone of /sys/class/powercap and return how to set its counter."""

    def zone(number: str, name: str, energy_uj: int, largest: int = 1_000_000) -> Any:
        folder = tmp_path / f"intel-rapl:{number}"
        folder.mkdir()
        for file, value in (("name", name), ("max_energy_range_uj", largest), ("energy_uj", energy_uj)):
            (folder / file).write_text(f"{value}\n")
        return lambda value: (folder / "energy_uj").write_text(f"{value}\n")

    return zone


def test_packages_are_added_wraps_counted_and_other_zones_left_out(rapl: Any, tmp_path: Path) -> None:
    first, second = rapl("0", "package-0", 400_000), rapl("1", "package-1", 900_000, 950_000)
    rapl("0:0", "core", 10)
    platform = rapl("2", "psys", 0)
    counter = RaplCounter(tmp_path)
    assert counter.joules() == 0
    first(600_000)
    platform(999_000)
    assert counter.joules() == pytest.approx(0.2)
    second(20_000)  # 900,000 → 950,000 = 0 → 20,000
    assert counter.joules() == pytest.approx(0.2 + 0.07)
    first(100_000)  # 600,000 → 1,000,000 = 0 → 100,000
    assert counter.joules() == pytest.approx(0.27 + 0.5)
    assert counter.joules() == pytest.approx(0.77), "a reading adds nothing"


def test_a_machine_without_counters_tells_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rapl: Any) -> None:
    with pytest.raises(OSError, match="no intel-rapl package"):
        RaplCounter(tmp_path)
    monkeypatch.setattr(energy.RaplCounter.__init__, "__defaults__", (tmp_path,))
    assert energy_counter(torch.device("cpu")) is None
    rapl("0", "package-0", 0)
    counter = energy_counter(torch.device("cpu"))
    assert counter is not None and counter.source == "RAPL"

    def refused(path: Path) -> str:
        raise PermissionError(f"{path}: only root may read")

    monkeypatch.setattr(energy, "_read", refused)
    assert energy_counter(torch.device("cpu")) is None


def test_a_boards_joules_are_those_since_the_counter_was_opened() -> None:
    nvml = Nvml(a=5_000_000, b=0)
    counter = NvmlCounter(nvml, nvml.nvmlDeviceGetHandleByUUID("GPU-a"))
    nvml.boards |= {"a": 5_001_500, "b": 77}
    assert counter.joules() == pytest.approx(1.5)


def test_the_board_is_the_one_that_pytorch_computes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(second=1000)
    names = {0: "first", 1: "second"}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=names[torch.device(device).index])
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    counter = energy_counter(torch.device("cuda:1"))
    assert counter is not None and counter.source == "NVML"
    assert energy_counter(torch.device("cuda:0")) is None, "NVML does not know it"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_counter(torch.device("cuda:1")) is None, "nvidia-ml-py is not installed"


def test_a_meter_measures_between_start_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0.0, 3.0, 5.0, 6.0])  # made, stopped, started, stopped
    counter = SimpleNamespace(source="fake", joules=lambda: next(readings))
    monkeypatch.setattr(energy, "energy_counter", lambda device: counter)
    meter = Meter(torch.device("cpu"))
    assert meter.stop().joules == 3
    meter.start()
    cost = meter.stop()
    assert cost.joules == 1 and 0 <= cost.seconds < 1
    assert meter.hardware["joules"] == "fake" and meter.hardware["threads"] == torch.get_num_threads()
    monkeypatch.setattr(energy, "energy_counter", lambda device: None)
    none = Meter(torch.device("cpu"))
    assert none.stop().joules is None and none.hardware["joules"] is None


def test_the_cpu_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\nprocessor\t: 1\n")
    assert cpu_name(tmp_path / "cpuinfo") == "Fast CPU @ 3 GHz"
    assert cpu_name(tmp_path / "nothing") == cpu_name(tmp_path / "nothing") != ""
