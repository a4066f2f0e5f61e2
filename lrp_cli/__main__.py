"""Entry point of the ``lrp`` command: ``lrp ...`` and ``python -m lrp_cli ...``."""

import os
import sys

from lrp_cli.errors import ExitCode, LrpError


def main() -> None:
    """Run the command line; an error is one line on stderr and an exit code, a traceback only with ``--debug``."""
    from lrp_cli.cli.app import app

    debug = "--debug" in sys.argv
    # --debug may stand anywhere, before or behind the command.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="lrp")
    except LrpError as error:
        if debug:
            raise
        _exit_with(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader has what it wanted (`| head -1`): leave quietly, and keep Python from flushing into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
    except KeyboardInterrupt:
        _exit_with("interrupted", ExitCode.INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        _exit_with(f"unexpected error: {what} (--debug shows where; please report it)", ExitCode.SOME_FAILED)


def _exit_with(message: str, code: ExitCode) -> None:
    sys.stderr.write(f"lrp: {message}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
