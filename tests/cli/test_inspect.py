import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CAT = str(ROOT / "sample_images/cat.jpg")


def inspected(lrp: Any, *arguments: str) -> dict[str, Any]:
    outcome = lrp("inspect", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.mark.parametrize(
    ("model", "config"),
    [("mobilenet_v3_small", "epsilon-gamma-box"), ("densenet121", "epsilon-plus-flat"), ("swin_t", "attnlrp-gamma")],
)
def test_every_operation_balances(lrp: Any, model: str, config: str) -> None:
    """What goes in is what goes out and what is absorbed, for each operation and for the whole."""
    found = inspected(lrp, "--model", model, "--weights", "random", "--config", config, "--dtype", "float64")
    for row in found["operations"]:
        difference = row["relevance_in"] - row["relevance_out"] - sum(row["absorbed"].values())
        assert abs(difference) < 1e-8 * abs(found["score"]), row
    absorbed = sum(sum(row["absorbed"].values()) for row in found["operations"])
    assert absorbed == pytest.approx(found["absorbed_sum"], rel=1e-9)
    assert found["score"] == pytest.approx(found["relevance_sum"] + found["absorbed_sum"], rel=1e-9)
    assert found["books_error"] < 1e-9
    assert found["operations"][-1]["relevance_in"] == pytest.approx(found["score"], rel=1e-9)


def test_rules_and_reasons(lrp: Any) -> None:
    found = inspected(lrp, CAT, "--config", "epsilon-gamma-box", "--target", "tiger cat")
    assert found["label"] == "tiger cat"
    layers = {row["layer"]: row for row in found["operations"] if row["operation"] in {"conv2d", "linear"}}
    assert (layers["features.1.0"]["rule"], layers["features.1.0"]["reason"]) == ("zbox", "first convolution or linear")
    assert layers["classifier.1"]["rule"] == "epsilon 1e-06"
    norms = [row for row in found["operations"] if row["operation"] == "batch_norm"]
    assert norms
    assert {row["rule"] for row in norms} == {"merged"}


def test_auto_is_resolved_and_said(lrp: Any) -> None:
    assert inspected(lrp, CAT)["config"] == "epsilon-gamma-box"


def test_the_table_ends_with_the_books(lrp: Any) -> None:
    outcome = lrp("inspect", CAT)
    assert outcome.code == 0
    assert "at the pixels" in outcome.out.splitlines()[-1]
    assert len(outcome.out.splitlines()) < len(lrp("inspect", CAT, "--all").out.splitlines())


def test_what_the_network_sees_can_be_changed(lrp: Any, tmp_path: Path) -> None:
    """As for lrp explain; networks of one's own may take one size only."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))\n"
    )
    own = (CAT, "--model", f"{tmp_path}/net.py:build", "--config", "epsilon")
    found = inspected(lrp, *own, "--resize", "32", "--crop", "32", "--mean", "0,0,0", "--std", "1,1,1")
    arguments = (*own, "--resize", "32", "--crop", "32", "--mean", "0,0,0", "--std", "1,1,1", "-o", tmp_path / "out")
    (record,) = lrp("explain", *arguments, "--json").records
    assert found["score"] == pytest.approx(record["score"], rel=1e-6)
    assert inspected(lrp, *own, "--resize", "32", "--crop", "32")["score"] != pytest.approx(record["score"], rel=1e-3)
    refused = lrp("inspect", *own)
    assert refused.code == 3
    assert "--resize and --crop set the size" in refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no.jpg"], 1, "no.jpg"),
        (["--model", "vgg61"], 3, "vgg16"),
        (["--config", "epsilom"], 4, "epsilon"),
        (["--target", "top:3"], 2, "one class"),
    ],
)
def test_errors_in_one_line(lrp: Any, arguments: list[str], code: int, words: str) -> None:
    outcome = lrp("inspect", *arguments)
    assert outcome.code == code
    assert outcome.out == ""
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_books_of_the_whole_zoo(lrp: Any) -> None:
    """All classification models of torchvision; ``python -m tests.benchmarks.zoo`` prints the table."""
    from lrp_cli.models import model_names

    for name in model_names():
        found = inspected(lrp, "--model", name, "--weights", "random")
        assert found["books_error"] < 1e-3, name
        assert found["amplification"] < 20, name


@pytest.mark.parametrize("model", ["efficientnet_b0", "mobilenet_v3_small", "squeezenet1_1", "alexnet"])
def test_dropout_in_place_is_no_change_in_place(lrp, model: str) -> None:
    result = lrp("inspect", "--model", model, "--weights", "random", "--config", "epsilon", "--json")
    assert result.code == 0
    assert json.loads(result.out)["books_error"] < 1e-4
