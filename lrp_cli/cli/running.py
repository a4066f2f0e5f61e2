"""A run as the user sees it: results and failures as they come, and how to go on after an interruption."""

from collections.abc import Sequence
from pathlib import Path

from lrp_cli.cli.progress import Progress
from lrp_cli.cli.report import Report, TooManyFailures
from lrp_cli.errors import LrpError, is_out_of_memory
from lrp_cli.runs.pictures import Picture
from lrp_cli.runs.records import Failure, Outcome, Skipped
from lrp_cli.runs.session import Session
from lrp_cli.runs.signals import Interrupted


def run(session: Session, pictures: Sequence[Picture], out: Path, progress: Progress, report: Report) -> None:
    """Explain the pictures.

    Raises:
        LrpError: what ended the run before its time.
        Interrupted: a signal came.
    """

    def sink(outcomes: Sequence[Outcome]) -> None:
        report.add(outcomes)
        progress.advance(outcomes, report)
        report.check()

    onward = f"what is done is recorded in {out}; the same command goes on from there"
    progress.start(len(pictures))
    try:
        report.check()
        session.run(pictures, sink, progress.note)
    except TooManyFailures:
        progress.note(f"stopped after {report.failed} failed; {onward}")
    except Interrupted:
        progress.summary(f"interrupted: {report}, of {len(pictures)}; {onward}")
        raise
    except Exception as error:
        if report.pictures and (isinstance(error, LrpError) or is_out_of_memory(error)):
            progress.note(f"{report}, of {len(pictures)}; {onward}")
        raise
    progress.summary(str(report))


def show_plan(session: Session, pictures: Sequence[Picture], out: Path, progress: Progress, report: Report) -> None:
    """Show what a run would do; writes nothing."""
    for step in session.plan(pictures, progress.note):
        if isinstance(step, Failure):
            report.add([step])
            progress.error(step.reason)
        elif isinstance(step, Skipped):
            progress.line(f"would skip {step.image}", {"image": str(step.image), "action": "skip"})
        else:
            begin = str(out / step.stem)
            values = {"image": str(step.path), "action": "explain", "outputs_begin_with": begin}
            progress.line(f"would explain {step.path} -> {begin}.*", values)
    progress.summary("nothing was written (--dry-run)")
