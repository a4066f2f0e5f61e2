"""``--compile``: explanations in machine code."""

from pathlib import Path

import numpy as np
import pytest

from lrp_cli import load_run
from lrp_cli.engine import library, native
from lrp_cli.errors import UsageError

CAT = Path(__file__).resolve().parents[2] / "sample_images/cat.jpg"


def test_without_a_compiler_in_one_line(lrp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    def missing() -> str:
        raise RuntimeError("No working C++ compiler found\nin torch._inductor.config.cpp.cxx")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    result = lrp.explain(CAT, "-o", tmp_path / "out", "--compile")
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert "C++ compiler" in line
    assert not (tmp_path / "out").exists()
    assert lrp.explain(CAT, "-o", tmp_path / "out").code == 0


@pytest.fixture
def compiler() -> None:
    try:
        native.Compiler()
    except UsageError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("compiler")
def test_for_a_few_pictures_nothing_is_compiled_and_that_is_said(lrp, tmp_path: Path) -> None:
    result = lrp.explain(CAT, "-o", tmp_path / "out", "--compile", "--json")
    assert result.code == 0
    assert len(result.records) == 1
    assert "--compile: nothing was compiled" in result.err
    assert "--compile" not in lrp.explain(CAT, "-o", tmp_path / "out", "--compile", "--dry-run").err


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("size", ["1", "4"])
def test_a_folder(lrp, make_picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setattr(library, "AFTER", 1)
    monkeypatch.setattr(native, "PATIENCE", 2)
    for seed in range(32):
        make_picture(tmp_path / f"in/{seed:02}.png", seed)
    options = ("-b", size, "--threads", "2", "-t", "top:2", "-c", "epsilon-gamma-box")
    result = lrp.explain(tmp_path / "in", "-o", tmp_path / "out", "--compile", *options)
    assert result.code == 0
    assert "--compile: passes compiled: 3" in result.err.splitlines()[-1]  # two of them for the way back
    assert lrp.explain(tmp_path / "in", "-o", tmp_path / "plain", *options).code == 0
    assert lrp("verify", tmp_path / "out").code == 0
    found, expected = (load_run(tmp_path / name) for name in ("out", "plain"))
    assert len(found) == len(expected) == 64
    for one, other in zip(found, expected, strict=True):
        assert one["target"] == other["target"]
        assert np.abs(one.relevance - other.relevance).sum() <= 1e-4 * np.abs(other.relevance).sum()
