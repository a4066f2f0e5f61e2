"""What processors are good at."""

import platform
from functools import cache
from pathlib import Path

import torch


@cache
def multiplies_matrices_well() -> bool:
    """Return whether torch's products of matrices are as fast as the arithmetic of its convolutions.

    Torch's own packages multiply matrices by MKL, which on AMD's processors leaves the widest instructions unused;
    convolutions are oneDNN's, which takes what there is. (Pointwise convolutions of resnet50 on an EPYC with AVX-512:
    1.7 times as long by MKL; on a Xeon, half as long.)
    """
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return not (has_mkl and _is_by_amd())


def _is_by_amd() -> bool:
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        described = platform.processor()
    return "AuthenticAMD" in described
