"""``--dtype``: in which floating-point type the network runs, and how far that is from double precision."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

CAT = Path(__file__).resolve().parents[2] / "sample_images/cat.jpg"


def relevance(out: Path) -> np.ndarray:
    (file,) = out.glob("*.npy")
    return np.load(file, allow_pickle=False)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_relevance_is_as_close_to_double_precision_as_the_type_allows(
    lrp, tmp_path: Path, dtype: str, error: float
) -> None:
    for name in ("float64", dtype):
        assert lrp.explain(CAT, "-o", tmp_path / name, "--dtype", name).code == 0
    exact, rough = relevance(tmp_path / "float64"), relevance(tmp_path / dtype)
    assert exact.dtype == rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).sum() <= error * np.abs(exact).sum()


def test_the_manifest_names_the_types_and_another_one_is_another_result(lrp, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16", "bfloat16", "float64"):
        assert lrp.explain(CAT, "-o", tmp_path, "--dtype", dtype).code == 0
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [(line["dtype"], line["products"]) for line in lines] == [
        ("float32", None),
        ("float32", "bfloat16"),
        ("float64", None),
    ]
    assert lrp("verify", tmp_path).code == 0


def test_a_run_in_bfloat16_passes_verification(lrp, tmp_path: Path) -> None:
    assert lrp("explain", CAT, "-o", tmp_path, "--dtype", "bfloat16").code == 0
    assert lrp("verify", tmp_path).code == 0


def test_inspection_in_each_type(lrp) -> None:
    errors = {}
    for dtype in ("float64", "float32", "bfloat16"):
        result = lrp("inspect", CAT, "-c", "epsilon", "--dtype", dtype, "--json")
        assert result.code == 0
        errors[dtype] = json.loads(result.out)["books_error"]
    assert errors["float64"] < 1e-10
    assert errors["float32"] < 1e-4
    assert 1e-6 < errors["bfloat16"] < 0.02


@pytest.mark.parametrize("dtype", ["float16", "double", ""])
def test_other_types_are_wrong_usage(lrp, dtype: str) -> None:
    result = lrp("explain", CAT, "--dtype", dtype)
    assert result.code == 2
    assert "--dtype" in result.err


def test_torch_is_left_in_its_own_precision(lrp, tmp_path: Path) -> None:
    assert lrp.explain(CAT, "-o", tmp_path, "--dtype", "float64").code == 0
    assert torch.get_default_dtype() == torch.float32
