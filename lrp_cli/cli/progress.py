"""What a person sees while a run goes on: a progress bar on stderr, results on stdout."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from lrp_cli.runs.records import Failure, Record


class Progress:
    """Prints results to stdout, errors and a progress bar to stderr; the bar only on a terminal.

    Attributes:
        is_shown: whether there is a progress bar.
    """

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._quiet = quiet
        self.is_shown = self._console.is_terminal and not quiet
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self.is_shown,
        )
        self._task = self._bar.add_task("explaining", total=total)
        self._failed = 0
        self._last: object = None

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, result: Record | Failure) -> None:
        """Count a result; several targets of one picture count once."""
        if result.image == self._last:
            return
        self._last = result.image
        self._failed += isinstance(result, Failure)
        failures = f" ({self._failed} failed)" if self._failed else ""
        self._bar.update(self._task, advance=1, description=f"explaining{failures}")

    def error(self, message: str) -> None:
        """Say on stderr what went wrong with one picture."""
        self._console.print(f"lrp: {message}")

    def result(self, text: str) -> None:
        """Print a result on stdout, at once, so that a consumer sees it as it comes."""
        if self.is_shown and sys.stdout.isatty():
            self._bar.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def summary(self, text: str) -> None:
        """Say on stderr how the run went."""
        if not self._quiet:
            self._console.print(text)
