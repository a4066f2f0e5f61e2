"""The progress bar: on terminals only, and as their owners want it."""

import os
import pty
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

BAR = "━"


@pytest.fixture
def folder(tmp_path: Path, make_picture: Callable[..., Path]) -> Path:
    for seed in range(12):
        make_picture(tmp_path / f"in/{seed}.png", seed)
    (tmp_path / "in/5.png").write_bytes(b"broken")
    return tmp_path


def on_terminal(lrp, folder: Path, *arguments: object, **variables: str) -> tuple[str, str]:
    """Run with a terminal for standard error; returns what it showed, and standard output."""
    keyboard, screen = pty.openpty()
    shown = bytearray()

    def watch() -> None:
        try:
            while data := os.read(keyboard, 4096):
                shown.extend(data)
        except OSError:  # how the end of a terminal is told
            pass

    command = ("explain", folder / "in", *lrp.small, "-b", "1", "-o", folder / "out", *arguments)
    environment = {"TERM": "xterm-256color", "COLUMNS": "120"} | variables
    process = lrp.process(*command, stderr=screen, env=environment)
    os.close(screen)
    thread = threading.Thread(target=watch)
    thread.start()
    out, _ = process.communicate(timeout=100)
    thread.join(10)
    os.close(keyboard)
    assert process.returncode == 1
    return shown.decode(), out.decode()


def test_a_terminal_shows_rate_time_left_and_failures(lrp, folder: Path) -> None:
    shown, out = on_terminal(lrp, folder, "--json", NO_COLOR="", CI="")
    assert BAR in shown
    assert "(1 failed)" in shown
    assert "/s" in shown
    assert "12/12" in shown or "11/12" in shown
    assert "lrp: " in shown
    assert len(out.splitlines()) == 11
    assert "\x1b" not in out


def test_no_color_has_no_colours(lrp, folder: Path) -> None:
    shown, _ = on_terminal(lrp, folder, NO_COLOR="1", CI="")
    assert "\x1b[3" not in shown.replace("\x1b[3;", "")
    assert "12" in shown


@pytest.mark.parametrize(("option", "variables"), [("--json", {"CI": "true"}), ("--quiet", {})])
def test_machines_and_quiet_people_get_no_bar(lrp, folder: Path, option: str, variables: dict[str, str]) -> None:
    shown, _ = on_terminal(lrp, folder, option, **variables)
    assert BAR not in shown
    assert "5.png: not a picture" in shown


def test_a_pipe_gets_no_bar_and_no_escapes(lrp, folder: Path) -> None:
    process = lrp.process("explain", folder / "in", *lrp.small, "-o", folder / "out", stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert b"\x1b" not in out + err
    assert err.decode().splitlines()[-1].startswith("11 pictures explained, 1 failed")


def test_verbose_says_what_is_used(lrp, folder: Path) -> None:
    result = lrp.explain(folder / "in", "-o", folder / "out", "--verbose")
    for said in ("efficientnet_lite0", "epsilon", "'crop': 64", "12 pictures"):
        assert said in result.err
