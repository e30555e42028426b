"""The arithmetic that ``auto`` means follows what the processor computes, as oneDNN's variables have it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from neuromf import precision
from neuromf.precision import cost_of_bf16, gains_by_bf16, resolve

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ASK = """
import torch
from neuromf.precision import cost_of_bf16, resolve
print(resolve("auto", torch.device("cpu")), cost_of_bf16(torch.device("cpu")))
"""


def elsewhere(**variables: str) -> str:
    """What another process with these variables says."""
    given = {name: value for name, value in os.environ.items() if not name.endswith("_MAX_CPU_ISA")}
    return subprocess.run(
        [sys.executable, "-c", ASK], env=given | variables, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_avx2_means_float32_whichever_of_onednns_names_says_so(variable: str) -> None:
    found = elsewhere(**{variable: "avx2"})
    assert found.startswith("32 ") and "no bf16 kernels" in found and "30 times as long" in found


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AMX, whatever this one has."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(precision, "_has_bf16_kernels", lambda: True)
    monkeypatch.setattr(precision, "_has_amx", lambda: True)


@pytest.mark.parametrize(
    ("limit", "taken"),
    [("AVX512_CORE", "32"), ("avx512_core_bf16", "32"), ("AVX10_1_512", "32"), ("AVX512_CORE_AMX", "bf16"), ("ALL", "bf16"),
     ("no such set", "bf16"), ("", "bf16")],
)  # fmt: skip
def test_only_amx_gains_by_bf16(amx: None, monkeypatch: pytest.MonkeyPatch, limit: str, taken: str) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert resolve("auto", CPU) == taken and bool(cost_of_bf16(CPU)) == (taken == "32")
    assert resolve("bf16", CPU) == "bf16" and resolve("32", CPU) == "32", "what is asked for by name is taken"


def test_the_first_of_onednns_variables_counts(amx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_AMX")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert gains_by_bf16(CPU)


def test_a_processor_without_amx_computes_in_float32(amx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_amx", lambda: False)
    assert resolve("auto", CPU) == "32" and "no AMX" in cost_of_bf16(CPU)


@pytest.mark.parametrize(("own", "taken"), [(True, "bf16"), (False, "32")])
def test_a_gpu_computes_in_bf16_where_it_does_so_by_itself(
    monkeypatch: pytest.MonkeyPatch, own: bool, taken: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: own or including_emulation)
    assert resolve("auto", GPU) == taken and bool(cost_of_bf16(GPU)) != own
