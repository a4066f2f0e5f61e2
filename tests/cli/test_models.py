"""``lrp models``."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lrp_cli.cli.app import app
from lrp_cli.cli.models import COLUMNS
from lrp_cli.errors import UsageError
from lrp_cli.models import list_models


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


def test_text_has_a_line_for_each_model() -> None:
    result = run()
    assert result.exit_code == 0
    title, *lines = result.stdout.splitlines()
    assert title.split() == list(COLUMNS)
    starts = [match.start() for match in re.finditer(r"\S+", title)]
    for line, entry in zip(lines, list_models(), strict=True):
        name, weights, input_size, parameters, cached, config = re.split(r" {2,}", line)
        assert (name, weights, config) == (entry.name, entry.weights, entry.config)
        assert input_size == "{} x {}".format(*entry.input_size)
        assert float(parameters.removesuffix("M")) == pytest.approx(entry.parameters / 1e6, abs=0.051)
        assert cached == ("yes" if name == "efficientnet_lite0" else "no")
        assert [line.find(cell, start) for cell, start in zip((name, weights), starts, strict=False)] == starts[:2]
        assert len(line) <= 100
    assert "timm:NAME" in result.stderr
    assert "FILE.py:FUNCTION" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_filter() -> None:
    result = run("VGG1*_bn")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == [
        "vgg11_bn",
        "vgg13_bn",
        "vgg16_bn",
        "vgg19_bn",
    ]
    assert result.stderr == ""


def test_json_has_an_object_a_line() -> None:
    result = run("--json", "vit")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["name"] for record in records] == [entry.name for entry in list_models("vit")]
    assert result.stderr == ""
    largest = next(record for record in records if record["name"] == "vit_h_14")
    assert largest == {
        "name": "vit_h_14",
        "weights": "IMAGENET1K_SWAG_E2E_V1",
        "weights_names": ["IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1"],
        "input_size": [518, 518],
        "parameters": 633470440,
        "cached": False,
        "config": largest["config"],
    }
    assert largest["config"]


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lrp_cli.cli.models import models

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    models("resnet1*", as_json=False)
    printed = capsys.readouterr().out
    for word in (*COLUMNS, "resnet101", "resnet152", "resnet18", "44.5M"):
        assert word in printed


def test_nothing_that_matches_is_a_usage_error() -> None:
    result = run("resnett50")
    assert isinstance(result.exception, UsageError)
    assert "did you mean 'resnet50'" in str(result.exception)
    assert result.stdout == ""


def test_help_says_what_else_can_be_named_and_that_code_is_executed() -> None:
    text = " ".join(run("--help").stdout.split())
    for words in ("FILTER", "--json", "timm:NAME", "FILE.py:FUNCTION", "code is executed"):
        assert words in text
