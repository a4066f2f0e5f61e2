"""What is known about processors."""

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lrp_cli.engine.processors import multiplies_matrices_well


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    multiplies_matrices_well.cache_clear()
    yield
    multiplies_matrices_well.cache_clear()


@pytest.mark.parametrize(
    "vendor, has_mkl, capability, expected",
    [
        ("GenuineIntel", True, "AVX512", True),
        ("AuthenticAMD", True, "AVX512", False),
        ("AuthenticAMD", True, "AVX2", True),
        ("AuthenticAMD", False, "AVX512", True),
    ],
)
@pytest.mark.parametrize("has_proc", [True, False])
def test_matrices_are_slow_where_convolutions_alone_use_avx512(
    vendor: str, has_mkl: bool, capability: str, expected: bool, has_proc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, **options: str) -> str:
        assert path == Path("/proc/cpuinfo")
        if not has_proc:
            raise FileNotFoundError(path)
        return f"processor\t: 0\nvendor_id\t: {vendor}\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: f"Family 25 Model 17 Stepping 1, {vendor}")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert multiplies_matrices_well() is expected
