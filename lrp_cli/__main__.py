"""Entry point of the ``lrp`` command: ``lrp ...`` and ``python -m lrp_cli ...``."""

import contextlib
import io
import os
import sys
import threading

from lrp_cli.errors import ExitCode, LrpError, is_out_of_memory


def main() -> None:
    """Run the command line; an error is one line on stderr and an exit code, a traceback only with ``--debug``."""
    try:
        _main()
    except KeyboardInterrupt:  # before signals are looked after, or when they no longer are
        sys.exit(ExitCode.INTERRUPTED)


def _main() -> None:
    from lrp_cli.cli.app import app
    from lrp_cli.cli.text import OutputClosed, printable
    from lrp_cli.runs.prefetch import RECORDER
    from lrp_cli.runs.signals import Interrupted, interruptible

    debug = "--debug" in sys.argv
    # --debug may stand anywhere, before or behind the command.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    _open_streams()
    # A name that the encoding of the terminal lacks must not end a run.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with interruptible():
            app(args=arguments, prog_name="lrp")
    except Interrupted as signal:
        if any(thread.name == RECORDER for thread in threading.enumerate()):
            os._exit(signal.exit_code)  # it stands still in the middle of printing, and would keep us from ending
        sys.exit(signal.exit_code)
    except OutputClosed:
        # The reader has what it wanted (`| head -1`): leave quietly.
        _forget_stdout()
        sys.exit(ExitCode.OK)
    except LrpError as error:
        if debug:
            raise
        _exit_with(printable(str(error)), error.exit_code)
    except Exception as error:
        if debug:
            raise
        _forget_stdout()
        if isinstance(error, OSError) and error.filename is None:
            _exit_with(f"cannot write to standard output: {error.strerror}", ExitCode.SOME_FAILED)
        if is_out_of_memory(error):
            _exit_with("out of memory: close other programs, or take a smaller model", ExitCode.SOME_FAILED)
        if "can't start new thread" in str(error):
            _exit_with(
                "no more threads can be started: raise the limit on processes or on memory (ulimit -u, ulimit -v, a "
                "container's pids limit)",
                ExitCode.SOME_FAILED,
            )
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        _exit_with(f"unexpected error: {printable(what)} (--debug shows where; please report it)", ExitCode.SOME_FAILED)


def _open_streams() -> None:
    """Have nothing come from standard input, and lead standard output and error nowhere, where they are closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 (open until the end)


def _forget_stdout() -> None:
    """Keep Python from flushing into a pipe that is closed, or a disk that is full, when it ends."""
    with contextlib.suppress(OSError, ValueError):  # stdout is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_with(message: str, code: ExitCode) -> None:
    sys.stderr.write(f"lrp: {message}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
