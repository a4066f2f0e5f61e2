"""Threads of torch that wait leave their cores to others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrp_cli.runs.spinning import SETTINGS, TIMES

SAMPLE = Path(__file__).resolve().parents[2] / "sample_images" / "cat.jpg"
WATCHED = """
import os, sys

class Watching:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), file=sys.stderr)

sys.meta_path.insert(0, Watching())
from lrp_cli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("user", "expected"), [({}, TIMES), ({"OMP_WAIT_POLICY": "passive"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_it_is_said_before_torch_is_there_and_not_where_the_user_says_something_else(
    tmp_path: Path, user: dict[str, str], expected: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", WATCHED, "explain", str(SAMPLE), "-o", str(tmp_path), "--dry-run", "--quiet"]
    done = subprocess.run(command, env=environment | user, capture_output=True, text=True, check=True)
    assert done.stderr.split() == [expected]
