"""Which class's score to explain, as given on the command line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lrp_cli.errors import UsageError, closest


@dataclass(frozen=True)
class Predicted:
    """The class with the highest score, picture by picture."""


@dataclass(frozen=True)
class Top:
    """The ``count`` classes with the highest scores, picture by picture."""

    count: int


@dataclass(frozen=True)
class ClassIndex:
    """One class, the same for every picture."""

    index: int


Target = Predicted | Top | ClassIndex


def parse_target(text: str, labels: Sequence[str]) -> Target:
    """Parse ``predicted``, ``top:K``, a class index or a class name; ``labels`` are the names of the model's classes.

    Raises:
        UsageError: K or the index is out of range, or no single class goes by that name.
    """
    wanted = text.strip()
    if wanted.casefold() == "predicted":
        return Predicted()
    if wanted.casefold().startswith("top:"):
        count = wanted[len("top:") :].strip()
        if not re.fullmatch(r"[0-9]{1,9}", count) or not 1 <= int(count) <= len(labels):
            raise UsageError(f"target {text!r}: K in top:K must be a whole number from 1 to {len(labels)}")
        return Top(int(count))
    return ClassIndex(resolve_class(text, labels))


def resolve_class(text: str, labels: Sequence[str]) -> int:
    """Return the index of the class that ``text`` names.

    A whole number is always an index. A name is that of a class spelled exactly so, or else spelled so but for upper
    and lower case (ImageNet has a Cardigan, a dog, and a cardigan), or else the only one that begins with it.

    Raises:
        UsageError: the index is out of range, or the name fits none or several classes; the message lists them.
    """
    wanted = text.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,9}", wanted):
        if not 0 <= int(wanted) < len(labels):
            raise UsageError(f"class index {wanted} is out of range: the model's classes are 0 to {len(labels) - 1}")
        return int(wanted)
    folded = wanted.casefold()
    spelled = [index for index, label in enumerate(labels) if label == wanted]
    exact = spelled or [index for index, label in enumerate(labels) if label.casefold() == folded]
    fitting = exact or [index for index, label in enumerate(labels) if folded and label.casefold().startswith(folded)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        which = ", ".join(f"{index} ({labels[index]})" for index in fitting[:5])
        more = f" and {len(fitting) - 5} more" if len(fitting) > 5 else ""
        relation = "is the name of" if exact else "begins the names of"
        raise UsageError(f"{text!r} {relation} {len(fitting)} classes, give the index: {which}{more}")
    near = closest(wanted, labels, count=3)
    containing = [label for label in labels if folded and folded in label.casefold()]
    if not near and containing:
        near = f"; did you mean {' or '.join(map(repr, containing[:3]))}?"
    raise UsageError(f"no class is called {text!r}; give predicted, top:K, an index or a name{near}")
