"""Option values that take more than a type to understand."""

from typing import Any

from lrp_cli.cli.options import KINDS, Fit, Interpolation
from lrp_cli.errors import UsageError, closest

MOST_THREADS = 1024
"""With many more, systems refuse to start them, and torch ends the process."""


def parse_kinds(text: str) -> tuple[str, ...]:
    """Return the kinds of output in ``--save``, each once.

    Raises:
        UsageError: there is none, or no such kind.
    """
    kinds = tuple(dict.fromkeys(kind.strip().lower() for kind in text.split(",") if kind.strip()))
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--save {kind!r}: choose from {', '.join(KINDS)}{closest(kind, KINDS)}")
    if not kinds:
        raise UsageError(f"--save names nothing to write: choose from {', '.join(KINDS)}")
    return kinds


def parse_preprocessing(
    fit: Fit,
    resize: int | None,
    crop: int | None,
    mean: str | None,
    std: str | None,
    interpolation: Interpolation | None,
) -> dict[str, Any]:
    """Return what of the model's preprocessing is to change.

    Raises:
        UsageError: a list of numbers that is none.
    """
    given = {
        "fit": fit.value,
        "resize": resize,
        "crop": crop,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "interpolation": interpolation and interpolation.value,
    }
    return {name: value for name, value in given.items() if value is not None}


def parse_threads(text: str | None) -> int | None:
    """Return the number of threads; None leaves it to torch.

    Raises:
        UsageError: it is no number that a processor could do anything with.
    """
    if text is None:
        return None
    try:
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= MOST_THREADS:
        raise UsageError(f"--threads {text!r}: give a number from 1 to {MOST_THREADS}")
    return count


def check_random_seed(seed: int) -> None:
    """Raise a UsageError where torch takes no such seed."""
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"--random-seed {seed}: give a number from -2^63 to 2^64 - 1")


def load_config(config: str) -> Any:
    """Return the config; "auto" is left to the explainer, which knows the model.

    Raises:
        ConfigError: there is no such config, or it is not valid.
    """
    from lrp_cli.rulesets import load
    from lrp_cli.rulesets.auto import AUTO

    return AUTO if config == AUTO else load(config)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: give three numbers separated by commas") from None
