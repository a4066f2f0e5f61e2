"""What can go wrong, said in one line, and the exit code that goes with it.

Everything that a user can cause (a typo, a broken file, no network) is raised as a :class:`LrpError`; the command line
prints its message as one line on stderr and exits with its code. Anything else that escapes is a bug.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the ``lrp`` command."""

    OK = 0
    SOME_FAILED = 1
    USAGE = 2
    NO_MODEL = 3
    INVALID_CONFIG = 4
    ENGINE = 5
    INTERRUPTED = 130


class LrpError(Exception):
    """An error the user can act on: ``str(error)`` is one line that says what is wrong and what to do."""

    exit_code = ExitCode.SOME_FAILED


class UsageError(LrpError):
    """Wrong arguments: an unknown target, option value or path."""

    exit_code = ExitCode.USAGE


class ModelError(LrpError):
    """No such model, or its weights could not be had or do not fit."""

    exit_code = ExitCode.NO_MODEL


class ConfigError(LrpError):
    """A rule config that does not exist, is not valid, or leaves a layer without a rule."""

    exit_code = ExitCode.INVALID_CONFIG


class ImageError(LrpError):
    """One picture that could not be read; the others of the run go on."""


class EngineError(LrpError):
    """Relevance could not be propagated: an unknown operation, a non-finite value, or books that do not balance."""

    exit_code = ExitCode.ENGINE


_OUT_OF_MEMORY = "out of memory", "defaultcpuallocator", "std::bad_alloc", "cannot allocate memory", "alloc_failed"
"""What CUDA and its libraries, torch, C++ and Linux say where memory has run out; in small letters."""

_ONEDNN_OUT_OF_MEMORY = "could not create a primitive"
"""All that oneDNN says then; with more behind it, it is something else."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, a processor's or a GPU's, has run out."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError)
        and (said == _ONEDNN_OUT_OF_MEMORY or any(words in said for words in _OUT_OF_MEMORY))
    )


def model_failure(error: Exception) -> EngineError:
    """Return what to raise where the model, whose code may be anybody's, raised ``error``."""
    said = next(iter(str(error).strip().splitlines()), "")
    failure = EngineError(f"the model fails: {type(error).__name__}: {said}".rstrip(": "))
    failure.__cause__ = error
    return failure


def closest(name: str, choices: Iterable[str], count: int = 1) -> str:
    """Return ``"; did you mean 'x'?"`` for the choices nearest to ``name``, or ``""`` where none is near.

    The case of letters is ignored in the comparison.
    """
    by_folded = {choice.casefold(): choice for choice in choices}
    near = [by_folded[match] for match in get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.6)]
    return f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
