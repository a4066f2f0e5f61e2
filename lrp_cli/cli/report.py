"""What happened in a run, how to say it, and the exit code."""

from dataclasses import dataclass, field

from lrp_cli.errors import ExitCode
from lrp_cli.runs.records import Failure, Record


@dataclass
class Report:
    """Counts what was done and what failed.

    Attributes:
        explained: pictures and targets explained.
        failures: pictures that were not, with their reasons.
    """

    explained: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def add(self, result: Record | Failure) -> None:
        """Count one result."""
        if isinstance(result, Failure):
            self.failures.append(result)
        else:
            self.explained.append(result)

    @property
    def exit_code(self) -> ExitCode:
        """OK, or that some pictures failed."""
        return ExitCode.SOME_FAILED if self.failures else ExitCode.OK

    def __str__(self) -> str:
        pictures = len({record.image for record in self.explained})
        done = f"{_counted(pictures, 'picture')} explained"
        if len(self.explained) != pictures:
            done += f" for {len(self.explained)} targets"
        return done + (f", {len(self.failures)} failed" if self.failures else "")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def line(record: Record) -> str:
    """Return one readable line on a picture and target."""
    reached = record.relevance_sum / record.score if record.score else 0.0
    first = next(iter(record.outputs.values()), None)
    return (
        f"{record.image}: {record.label} ({record.target}), score {record.score:.4g}, "
        f"probability {record.probability:.1%}, {reached:.1%} of the score reached the pixels"
        + (f" -> {first}" if first else "")
    )
