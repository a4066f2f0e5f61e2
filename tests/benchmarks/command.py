"""Runs ``lrp`` as a person would, and returns what it prints."""

import subprocess
import sys


def lrp(*arguments: str) -> str:
    """Run a command and return its standard output; its errors go where this process's go."""
    command = [sys.executable, "-m", "lrp_cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
