"""The models that can be named, with what is known about each before it is built."""

from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from lrp_cli.errors import UsageError, closest
from lrp_cli.models.catalogue import TIMM_PREFIX, find_architecture, model_names
from lrp_cli.rulesets.auto import preset_for_name


@dataclass(frozen=True)
class ModelEntry:
    """A model that ``load_model`` takes.

    Attributes:
        name: its name.
        weights: its default weights, or None where none are published.
        weights_names: all its published weights, the default first.
        input_size: (height, width) in pixels that the default weights are made for, or None where unknown.
        parameters: how many numbers the network learned, or None where nobody says.
        cached: whether the default weights need no download.
        config: the preset that ``auto`` gives for it, or None where that takes the network itself.
    """

    name: str
    weights: str | None
    weights_names: tuple[str, ...]
    input_size: tuple[int, int] | None
    parameters: int | None
    cached: bool
    config: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def list_models(pattern: str | None = None) -> list[ModelEntry]:
    """Return the models whose names match ``pattern``; no network is built and nothing downloaded.

    Args:
        pattern: part of a name, or a whole name with ``*``, ``?`` and ``[...]`` in it; upper and lower case are alike.
            timm's models are listed where it begins with ``timm``.

    Raises:
        UsageError: no name matches; the message has the closest ones.
        ModelError: timm's models are asked for, but it is not installed.
    """
    names = _names(pattern)
    if pattern is None:
        return [_entry(name) for name in names]
    wanted = pattern.strip().lower()
    glob = wanted if any(sign in wanted for sign in "*?[") else f"*{wanted}*"
    matching = [name for name in names if fnmatchcase(name.lower(), glob)]
    if not matching:
        raise UsageError(f"no model matches {pattern!r}{closest(wanted.strip('*'), names, count=3)}")
    return [_entry(name) for name in matching]


def _names(pattern: str | None) -> list[str]:
    if pattern is not None and pattern.strip().lower().startswith(TIMM_PREFIX.rstrip(":")):
        from lrp_cli.models.timm_models import timm_names

        return timm_names()
    return model_names()


def _entry(name: str) -> ModelEntry:
    architecture = find_architecture(name)
    weights = next(iter(architecture.weights_names), None)
    known = architecture.describe(weights) if weights is not None else None
    return ModelEntry(
        name=name,
        weights=weights,
        weights_names=architecture.weights_names,
        input_size=known.input_size if known else None,
        parameters=known.parameters if known else None,
        cached=known.cached if known else False,
        config=None if name.startswith(TIMM_PREFIX) else preset_for_name(name),
    )
