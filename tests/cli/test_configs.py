"""``lrp configs`` and its commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lrp_cli.cli.configs import app
from lrp_cli.errors import ConfigError, UsageError
from lrp_cli.rulesets import load, presets

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_the_list_has_a_line_for_each_preset() -> None:
    result = run()
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == len(presets())
    for line, preset in zip(lines, presets(), strict=True):
        name, description = line.split(maxsplit=1)
        assert (name, description) == (preset.name, preset.ruleset.description)
        assert len(line) <= 120


def test_the_list_as_json_has_an_object_a_line() -> None:
    records = [json.loads(line) for line in run("--json").stdout.splitlines()]
    assert [record["name"] for record in records] == [preset.name for preset in presets()]
    for record in records:
        preset = load(record["name"])
        assert record["description"] == preset.ruleset.description
        assert record["source"] == preset.ruleset.source
        assert record["digest"] == preset.digest


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_show_prints_the_file_as_it_is(preset, tmp_path: Path) -> None:
    result = run("show", preset.name)
    assert result.exit_code == 0
    assert result.stdout_bytes == preset.path.read_bytes()
    copy = tmp_path / "copy.yaml"
    copy.write_bytes(result.stdout_bytes)
    assert run("show", str(copy)).stdout == result.stdout
    assert load(copy).digest == preset.digest


def test_schema_is_json() -> None:
    schema = json.loads(run("schema").stdout)
    assert schema["title"] == "Ruleset"
    assert "layers" in schema["properties"]


def test_check_says_valid_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("layers:\n  - {kind: linear, rule: epsilon}\n  - rule: zplus\n")
    assert run("check", str(path)).stdout == f"{path}: valid, 2 entries\n"
    assert run("check", "lrp-0").stdout == "lrp-0: valid, 1 entry\n"


def test_check_points_at_entries_that_never_apply(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("layers:\n  - rule: zplus\n  - {kind: linear, rule: epsilon}\n")
    result = run("check", str(path))
    assert result.exit_code == 0
    assert result.stdout == f"{path}: valid, 2 entries; layers[1] never applies, layers[0] comes first\n"


@pytest.mark.parametrize("command", ["check", "show"])
def test_an_invalid_config_is_a_config_error(command: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("layers:\n  - rule: zpluss\n")
    result = run(command, str(path))
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == f"{path}:2: layers[0].rule: unknown rule 'zpluss'; did you mean 'zplus'?"
    assert result.stdout == ""


def test_an_unknown_name_is_a_config_error() -> None:
    result = run("show", "epsilon-pluss")
    assert isinstance(result.exception, ConfigError)
    assert "did you mean 'epsilon-plus'?" in str(result.exception)


def test_json_is_for_the_list_only() -> None:
    result = run("--json", "show", "epsilon")
    assert isinstance(result.exception, UsageError)
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["show"], ["check"], ["shwo"], ["--jsno"], ["show", "epsilon", "lrp-0"]])
def test_wrong_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [[], ["show"], ["schema"], ["check"]])
def test_help(arguments: list[str]) -> None:
    result = run(*arguments, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    if not arguments:
        for word in ("show", "schema", "check", "--json"):
            assert word in result.stdout


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from lrp_cli.cli.configs import app\n"
        "assert CliRunner().invoke(app, []).exit_code == 0\n"
        "assert not {'torch', 'torchvision', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
