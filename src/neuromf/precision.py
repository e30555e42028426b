"""The arithmetic that networks are trained in: bfloat16 where the processor has kernels that gain by it, else float32."""

from __future__ import annotations

import os
from typing import Literal

import torch

Precision = Literal["32", "bf16"]
# Instruction sets without AMX that oneDNN's variables may name. They limit oneDNN alone, PyTorch's cpuid knows nothing of
# them; a name that oneDNN does not know limits nothing.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # the first one that is set counts
_BELOW_AMX = {
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2",
    "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512",
}  # fmt: skip


def resolve(asked: Literal["auto", "32", "bf16"], device: torch.device) -> Precision:
    """Return the precision that a setting means on a device: ``auto`` is bf16 where that is the faster one."""
    if asked != "auto":
        return asked
    return "bf16" if gains_by_bf16(device) else "32"


def gains_by_bf16(device: torch.device) -> bool:
    """Return whether bf16 convolutions are faster there than float32 ones.

    On a GPU where it computes in bf16 by itself. On a CPU with AMX alone: there they took half of float32's time, on
    AVX-512 with bf16 instructions 1.2 to 1.5 times as much (docs/benchmarks.md).
    """
    if device.type == "cuda":  # where PyTorch sees none, the GPU is another machine's
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return _has_bf16_kernels() and _has_amx() and _limit() not in _BELOW_AMX


def cost_of_bf16(device: torch.device) -> str:
    """Return what bf16 costs on a device that does not gain by it, as the end of a sentence; nothing where it does."""
    if gains_by_bf16(device):
        return ""
    if device.type == "cuda":
        return "this GPU has no bf16 arithmetic: PyTorch emulates it"
    if _has_bf16_kernels():
        return "this processor has no AMX: convolutions take 1.2 to 3.5 times as long in bf16 as in float32"
    return (
        "oneDNN has no bf16 kernels for this processor: an update takes some 30 times as long as in float32 (of the demo"
        " 46.5 s instead of 1.55 s)"
    )


def _has_bf16_kernels() -> bool:
    """Return whether oneDNN has any bf16 kernels here; it asks itself, so its variables count."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has_amx() -> bool:
    """Return whether the processor has AMX's bf16 tiles and the kernel lets a process use them."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16")) and torch.cpu._init_amx()


def _limit() -> str:
    return next((os.environ[name].upper() for name in _LIMITS if os.environ.get(name)), "")
