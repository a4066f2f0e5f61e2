"""What happened in a run, how to say it, and the exit code."""

from collections.abc import Sequence

from lrp_cli.cli.text import counted
from lrp_cli.errors import ExitCode
from lrp_cli.runs.records import Failure, Outcome, Record, Skipped


class TooManyFailures(Exception):  # noqa: N818 (the user asked to stop here)
    """As many pictures failed as were to end the run."""


class Report:
    """Counts what was done and what failed.

    Attributes:
        pictures, targets: explained in this run.
        skipped: pictures that an earlier run explained.
        failed: pictures, paths or targets that were not explained.
    """

    def __init__(self, most_failures: int | None = None) -> None:
        self.pictures = 0
        self.targets = 0
        self.skipped = 0
        self.failed = 0
        self._most_failures = most_failures

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count the results of one picture."""
        explained = sum(isinstance(outcome, Record) for outcome in outcomes)
        self.targets += explained
        self.pictures += explained > 0
        self.skipped += any(isinstance(outcome, Skipped) for outcome in outcomes)
        self.failed += sum(isinstance(outcome, Failure) for outcome in outcomes)

    def check(self) -> None:
        """Raise TooManyFailures where there are as many as were to end the run."""
        if self._most_failures is not None and self.failed >= self._most_failures:
            raise TooManyFailures

    @property
    def exit_code(self) -> ExitCode:
        """OK, or that some pictures failed."""
        return ExitCode.SOME_FAILED if self.failed else ExitCode.OK

    def __str__(self) -> str:
        done = f"{counted(self.pictures, 'picture')} explained"
        if self.targets != self.pictures:
            done += f" for {self.targets} targets"
        if self.skipped:
            done += f", {self.skipped} skipped (explained before; --force explains them again)"
        return done + (f", {self.failed} failed" if self.failed else "")


def line(record: Record) -> str:
    """Return one readable line on a picture and target."""
    if record.versus is None:
        reached = f"{record.relevance_sum / record.score if record.score else 0.0:.1%} of the score"
    else:  # the difference of two scores may be next to nothing, and be made up of much
        reached = f"relevance of {record.relevance_sum:.4g}"
    first = next(iter(record.outputs.values()), None)
    versus = "" if record.versus is None else f" vs {record.versus}"
    return (
        f"{record.image}: {record.label} ({record.target}){versus}, score {record.score:.4g}, "
        f"probability {record.probability:.1%}, {reached} reached the pixels" + (f" -> {first}" if first else "")
    )
