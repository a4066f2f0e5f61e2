"""What several test files need."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrp_cli.runs.spinning import spin_briefly
from lrp_cli.runs.turns import usable_cores

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Give torch this process's share of the processor, where several share the work (``-n``).

    Its threads must not keep cores busy that others want: some tests have more of them than their share.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if workers:
        spin_briefly()
        import torch

        torch.set_num_threads(max(usable_cores() // workers, 1))


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Lrp:
    """Runs ``lrp`` in this process, or in one of its own.

    ``small`` are the options with which the packaged model is quick: pictures of 64 pixels, and the cheapest preset.
    """

    small = ("--resize", "64", "--crop", "64", "--config", "epsilon")

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Outcome:
        from lrp_cli.__main__ import main

        out, err = io.StringIO(), io.StringIO()
        patch = pytest.MonkeyPatch()
        patch.setattr(sys, "argv", ["lrp", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code: object = 0
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            patch.undo()
        assert isinstance(code, int)
        return Outcome(code, out.getvalue(), err.getvalue())

    def explain(self, *arguments: object, stdin: bytes = b"") -> Outcome:
        return self("explain", *self.small, *arguments, stdin=stdin)

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "lrp_cli", *map(str, arguments)]

    def process(self, *arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
        # A test run in the background of a shell script ignores Ctrl-C, and its children would, too.
        heeding = None if os.name == "nt" else partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "preexec_fn": heeding} | options
        return subprocess.Popen(self.command(*arguments), env=environment, **settings)

    def shell(self, line: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a shell line, in which LRP stands for the command."""
        line = f"set -o pipefail; {line.replace('LRP', shlex.join(self.command()))}"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            ["bash", "-c", line], env=environment, text=True, capture_output=True, timeout=120, check=False, **options
        )


@pytest.fixture(scope="session")
def lrp() -> Lrp:
    return Lrp()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Path]:
    """Make a picture that differs with its seed."""

    def make(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
        return path

    return make
