import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from lrp_cli.rulesets import presets

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line for line in README.splitlines() if re.match(r"(find .*\| )?lrp \w+", line)]


def test_the_presets_are_those_that_there_are() -> None:
    table = set(re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE))
    assert table == {preset.name for preset in presets()}


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("line", COMMANDS)
def test_options_of_the_commands_exist(lrp: Any, line: str) -> None:
    """Each ``lrp COMMAND`` and each option of it that the README names is in that command's help."""
    words = shlex.split(line.split(" #", maxsplit=1)[0].split("| jq", maxsplit=1)[0].split(">", maxsplit=1)[0])
    start = words.index("lrp")
    command = words[start + 1]
    shown = lrp(command, "--help").out
    for word in words[start + 2 :]:
        if word.startswith("--"):
            assert word in shown, f"{word} of lrp {command}"


def test_the_config_in_it_is_valid(lrp: Any, tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert lrp("configs", "check", str(file)).code == 0


def test_every_picture_in_it_exists() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
