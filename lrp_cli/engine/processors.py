"""What processors are good at."""

import platform
from functools import cache
from pathlib import Path

import torch


@cache
def multiplies_matrices_well() -> bool:
    """Return whether torch's products of matrices are as fast as the arithmetic of its convolutions.

    Torch's own packages multiply matrices by MKL, which on AMD's processors uses AVX2 and no more. Convolutions are
    oneDNN's, which uses AVX-512 where it is to be had: there alpha2-beta1 on resnet50 took 2.4 times as long as
    gradient times input with matrices, and 2.0 times with convolutions (``python -m tests.benchmarks.speed``).
    """
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return not (has_mkl and has_avx512 and _is_by_amd())


def _is_by_amd() -> bool:
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        described = platform.processor()
    return "AuthenticAMD" in described
