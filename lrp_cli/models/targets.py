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


@dataclass(frozen=True)
class Rest:
    """All classes but the one explained."""


@dataclass(frozen=True)
class Contrast:
    """What speaks for ``target`` rather than for ``versus``: the score of the one minus that of the other.

    Of :class:`Rest` it is the mean score. :class:`Top` makes a contrast of each of its classes. Where ``predicted``
    is a side, whether the two sides are one class is only known picture by picture.
    """

    target: Predicted | Top | ClassIndex
    versus: Predicted | ClassIndex | Rest


Target = Predicted | Top | ClassIndex | Contrast

_VERSUS = re.compile(r"\s+vs\s+", re.IGNORECASE)


def parse_target(text: str, labels: Sequence[str]) -> Target:
    """Parse a class to explain, alone or held against another: ``A``, ``A vs B``, ``A vs rest``.

    A is ``predicted``, ``top:K``, a class index or a class name; B is an index, a name, ``predicted`` or ``rest``.
    A text that is the name of a class is that class, ``vs`` in it or not. ``labels`` are the names of the classes.

    Raises:
        UsageError: K or an index is out of range, no single class goes by a name, or both sides are the same class.
    """
    splits = list(_VERSUS.finditer(text.strip()))
    if not splits:
        return _parse_side(text, labels)
    try:
        return ClassIndex(resolve_class(text, labels))
    except UsageError:
        pass
    errors = []
    # Names may have a "vs" of their own: the first place at which both sides can be read is the one meant.
    for split in splits:
        try:
            return _parse_contrast(text.strip(), split, labels)
        except UsageError as error:
            errors.append(error)
    raise errors[0]


def _parse_contrast(text: str, split: re.Match[str], labels: Sequence[str]) -> Contrast:
    target = _parse_side(text[: split.start()], labels)
    versus = _parse_versus(text[split.end() :], labels)
    if target == versus or (target == Top(1) and versus == Predicted()):
        raise UsageError(f"target {text!r} holds a class against itself")
    return Contrast(target, versus)


def _parse_side(text: str, labels: Sequence[str]) -> Predicted | Top | ClassIndex:
    wanted = text.strip()
    if wanted.casefold() == "predicted":
        return Predicted()
    if wanted.casefold().startswith("top:"):
        count = wanted[len("top:") :].strip()
        if not re.fullmatch(r"[0-9]{1,9}", count) or not 1 <= int(count) <= len(labels):
            raise UsageError(f"target {text!r}: K in top:K must be a whole number from 1 to {len(labels)}")
        return Top(int(count))
    return ClassIndex(resolve_class(text, labels))


def _parse_versus(text: str, labels: Sequence[str]) -> Predicted | ClassIndex | Rest:
    wanted = text.strip().casefold()
    if wanted == "predicted":
        return Predicted()
    if wanted == "rest":
        return Rest()
    return ClassIndex(resolve_class(text, labels, others="rest, predicted"))


def resolve_class(text: str, labels: Sequence[str], *, others: str = "predicted, top:K") -> int:
    """Return the index of the class that ``text`` names; ``others`` is what else a message may offer in its place.

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
    raise UsageError(f"no class is called {text!r}; give {others}, an index or a name{near}")
