"""What a person sees while a run goes on: a progress bar on stderr, results on stdout."""

import json
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from lrp_cli.cli.report import Report, line
from lrp_cli.cli.text import print_line, printable
from lrp_cli.runs.records import Failure, Outcome, Record


class _Rate(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


class Progress:
    """Prints results to stdout, errors and a progress bar to stderr; the bar only on a terminal.

    Attributes:
        is_shown: whether there is a progress bar.
    """

    def __init__(self, *, quiet: bool, verbose: bool, as_json: bool) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._quiet = quiet
        self._verbose = verbose
        self._as_json = as_json
        self.is_shown = self._console.is_terminal and not quiet and not os.environ.get("CI")
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,  # results go to stdout, wherever that leads
            redirect_stderr=False,
            disable=not self.is_shown,
        )
        self._task = self._bar.add_task("explaining", total=None)

    def start(self, total: int) -> None:
        """Show the bar, for so many pictures."""
        self._bar.update(self._task, total=total)
        self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, outcomes: Sequence[Outcome], report: Report) -> None:
        """Show the results of one picture, and count it."""
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                self.error(outcome.reason)
            elif self._as_json:
                records = [outcome.to_json()] if isinstance(outcome, Record) else outcome.records
                for record in records:
                    self._print(json.dumps(record))
            elif isinstance(outcome, Record) and not self._quiet:
                self._print(printable(line(outcome)))
        failures = f" ({report.failed} failed)" if report.failed else ""
        self._bar.update(self._task, advance=1, description=f"explaining{failures}")

    def line(self, text: str, values: dict[str, Any]) -> None:
        """Print a result on stdout: as JSON, or as a line to read unless that is not wanted."""
        if self._as_json:
            self._print(json.dumps(values))
        elif not self._quiet:
            self._print(printable(text))

    def _print(self, text: str) -> None:
        if self.is_shown and sys.stdout.isatty():
            self._bar.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            print_line(text)

    def error(self, message: str) -> None:
        """Say on stderr what went wrong with one picture."""
        self._console.print(f"lrp: {printable(message)}")

    def note(self, message: str) -> None:
        """Say on stderr what the user should know."""
        if not self._quiet:
            self._console.print(f"lrp: {printable(message)}")

    def detail(self, message: str) -> None:
        """Say on stderr what only helps to understand a run."""
        if self._verbose:
            self.note(message)

    def summary(self, text: str) -> None:
        """Say on stderr how the run went."""
        if not self._quiet:
            self._console.print(printable(text))
