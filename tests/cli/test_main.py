"""The command as a whole: help, start-up, pipes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from lrp_cli.__main__ import main
from lrp_cli.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
CAT = ROOT / "sample_images/cat.jpg"
HEAVY = ("torch", "torchvision", "matplotlib", "PIL")


def commands(command: Any, name: str = "lrp") -> Iterator[tuple[str, Any]]:
    yield name, command
    for sub, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{name} {sub}")


TREE = dict(commands(typer.main.get_command(app)))


def test_an_interruption_before_anything_is_set_up_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lrp_cli.__main__._main", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", TREE)
def test_every_command_and_option_says_what_it_is_for(name: str) -> None:
    command = TREE[name]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("name", TREE)
def test_every_command_has_help_with_h_and_help(lrp, name: str) -> None:
    for option in ("-h", "--help"):
        result = lrp(*name.split()[1:], option)
        assert result.code == 0
        assert result.out.startswith(f"Usage: {name}")


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "--help"], ["configs"], ["configs", "show", "epsilon"]])
def test_first_words_come_without_heavy_imports(arguments: list[str]) -> None:
    assert imported(arguments, HEAVY) == []


def test_the_default_model_comes_without_torchvision_and_matplotlib(tmp_path: Path) -> None:
    arguments = ["explain", str(CAT), "-o", str(tmp_path), "--quiet"]
    assert imported(arguments, ("torchvision", "matplotlib")) == []


def imported(arguments: list[str], names: Sequence[str]) -> list[str]:
    """Return which of the modules a command imports, in a process of its own."""
    code = f"""
import json, sys
from lrp_cli.__main__ import main
sys.argv = ["lrp", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps([name for name in {names!r} if name in sys.modules]), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stderr)


def test_an_unknown_command_is_wrong_usage(lrp) -> None:
    result = lrp("explian")
    assert result.code == 2
    assert "explain" in result.err


def test_the_readme_pipeline(lrp, tmp_path: Path) -> None:
    line = (
        "find sample_images -name '*.jpg' -o -name '*.png' | head -3 | "
        f"xargs LRP explain --json -c epsilon --resize 64 --crop 64 -o {tmp_path} | python3 -m json.tool --json-lines"
    )
    result = lrp.shell(line, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"relevance_sum"') == 3


def test_a_closed_pipe_ends_quietly_and_leaves_a_valid_manifest(
    lrp, tmp_path: Path, make_picture: Callable[..., Path]
) -> None:
    for seed in range(30):
        make_picture(tmp_path / f"in/{seed}.png", seed)
    result = lrp.shell(
        f"LRP explain {tmp_path}/in --json -q -c epsilon --resize 64 --crop 64 -b 2 -o {tmp_path}/out | head -1"
    )
    assert result.stderr == ""
    assert result.returncode == 0
    assert json.loads(result.stdout)["image"].endswith("0.png")
    lines = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert 1 <= len(lines) < 30
    assert lrp("verify", tmp_path / "out").code == 0  # what was begun then is recorded, too


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed(lrp, tmp_path: Path, closed: str) -> None:
    command = f"LRP explain {CAT} -c epsilon --resize 64 --crop 64 -o {tmp_path} {closed}"
    result = lrp.shell(command)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_pictures_named_on_a_standard_input_that_is_closed(lrp, tmp_path: Path) -> None:
    result = lrp.shell(f"LRP explain - -o {tmp_path} <&-")
    assert (result.returncode, result.stderr.strip()) == (2, "lrp: no pictures were found")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output_is_an_error(lrp, tmp_path: Path) -> None:
    result = lrp.shell(f"LRP explain {CAT} --json -c epsilon --resize 64 --crop 64 -o {tmp_path} > /dev/full")
    assert result.returncode == 1
    assert "standard output" in result.stderr
    assert "Traceback" not in result.stderr
