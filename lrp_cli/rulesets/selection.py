"""Which entry of a config a layer gets: the first one whose selector matches."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lrp_cli.errors import ConfigError, closest
from lrp_cli.rulesets.schema import LayerEntry, Ruleset

WEIGHTED_KINDS = frozenset({"convolution", "linear"})
"""The kinds that positions (``first``, ``last``, ``depth``) are counted over."""


@dataclass(frozen=True)
class Layer:
    """A layer as the selectors see it.

    ``index`` counts the convolutions and linear layers that ran before it, ``count`` is how many of them the network
    runs in all. A batch norm does not count, so its ``index`` is that of the convolution or linear layer that follows.
    """

    name: str
    class_name: str
    kind: str
    index: int
    count: int

    @property
    def depth(self) -> float:
        """Where in the network the layer is, from 0 (first) to 1 (last)."""
        return min(self.index / max(self.count - 1, 1), 1.0)

    @property
    def is_first(self) -> bool:
        """Whether this is the first convolution or linear layer to run."""
        return self.kind in WEIGHTED_KINDS and self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether this is the last convolution or linear layer to run."""
        return self.kind in WEIGHTED_KINDS and self.index == self.count - 1


def select(ruleset: Ruleset, layer: Layer, *, config: str = "") -> LayerEntry:
    """Return the first entry that matches the layer.

    ``config`` is the name of the config, for the message. Raises :class:`ConfigError` where no entry matches.
    """
    for entry in ruleset.layers:
        if _matches_now(entry, layer.name, layer.class_name, layer.kind, layer.index) and _matches_later(entry, layer):
            return entry
    where = f"config {config!r}" if config else f"the config ({ruleset.description or 'without description'})"
    raise ConfigError(
        f"no entry of {where} matches layer {layer.name!r} (kind {layer.kind}, class {layer.class_name}); "
        "add an entry '- rule: epsilon' at the end of 'layers'"
    )


def candidates(ruleset: Ruleset, *, name: str, class_name: str, kind: str, index: int) -> list[LayerEntry]:
    """Return the entries that may turn out to be the layer's while the number of layers is not known yet.

    ``last`` and ``depth`` are open until the network has run to its end, all else is decided. The entries come in the
    order of the config, and end with the first that matches for certain. Whatever the number of layers will be,
    :func:`select` returns one of them; the list is empty, or may turn out to hold none that matches, where the config
    leaves the layer without a rule.
    """
    open_entries: list[LayerEntry] = []
    for entry in ruleset.layers:
        if not _matches_now(entry, name, class_name, kind, index):
            continue
        open_entries.append(entry)
        if entry.last is None and (entry.depth is None or index == 0):
            break
    return open_entries


def describe(entry: LayerEntry) -> str:
    """Say in a few words which layers the entry is for, such as ``first convolution`` or ``kind linear``."""
    kinds = [] if entry.kind is None or "any" in entry.kind else list(entry.kind)
    position = " and ".join(word for word, given in (("first", entry.first), ("last", entry.last)) if given)
    parts = [f"{position} {_either(kinds) or 'layer'}"] if position else [f"kind {_either(kinds)}"] if kinds else []
    parts += [f"not {word}" for word, given in (("first", entry.first), ("last", entry.last)) if given is False]
    if entry.class_ is not None:
        parts.append(f"class {_either(entry.class_)}")
    if entry.name is not None:
        parts.append(f"name {_either(entry.name)}")
    if entry.depth is not None:
        parts.append(f"depth {entry.depth[0]:g} to {entry.depth[1]:g}")
    return ", ".join(parts) or "any layer"


def shadowed(ruleset: Ruleset) -> list[tuple[int, int]]:
    """Return the entries that can never win, each with the earlier entry that matches whatever it matches.

    Both are indices into ``ruleset.layers``. Only selectors that are plainly as wide or wider count; what one pattern
    for names has in common with another is not looked into.
    """
    pairs = []
    for later, entry in enumerate(ruleset.layers):
        earlier = next((index for index, other in enumerate(ruleset.layers[:later]) if _covers(other, entry)), None)
        if earlier is not None:
            pairs.append((later, earlier))
    return pairs


def unmatched(ruleset: Ruleset, names: Collection[str], classes: Collection[str]) -> list[str]:
    """Return, in words, which names and classes the config gives that no layer has, of these names and classes."""
    complaints = []
    for number, entry in enumerate(ruleset.layers):
        for pattern in entry.name or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                complaints.append(f"layers[{number}]: no layer has the name {pattern!r}{closest(pattern, names)}")
        for class_name in entry.class_ or ():
            if class_name not in classes:
                complaints.append(f"layers[{number}]: no layer is a {class_name!r}{closest(class_name, classes)}")
    return complaints


def _covers(wide: LayerEntry, narrow: LayerEntry) -> bool:
    return (
        (wide.kind is None or "any" in wide.kind or (narrow.kind is not None and {*narrow.kind} <= {*wide.kind}))
        and (wide.class_ is None or (narrow.class_ is not None and {*narrow.class_} <= {*wide.class_}))
        and (wide.name is None or (narrow.name is not None and {*narrow.name} <= {*wide.name}))
        and wide.first in (None, narrow.first)
        and wide.last in (None, narrow.last)
        and (
            wide.depth is None
            or (narrow.depth is not None and wide.depth[0] <= narrow.depth[0] and narrow.depth[1] <= wide.depth[1])
        )
    )


def _either(words: Iterable[str]) -> str:
    return " or ".join(words)


def _matches_now(entry: LayerEntry, name: str, class_name: str, kind: str, index: int) -> bool:
    """Whether everything matches that can be told before the number of layers is known."""
    weighted = kind in WEIGHTED_KINDS
    return (
        (entry.kind is None or kind in entry.kind or "any" in entry.kind)
        and (entry.class_ is None or class_name in entry.class_)
        and (entry.name is None or any(fnmatchcase(name, pattern) for pattern in entry.name))
        and (entry.first is None or entry.first == (weighted and index == 0))
        and (weighted or not entry.last)
        and (entry.depth is None or (entry.depth[0] == 0 if index == 0 else entry.depth[1] > 0))
    )


def _matches_later(entry: LayerEntry, layer: Layer) -> bool:
    """Whether the rest matches, which takes the number of layers."""
    return (entry.last is None or entry.last == layer.is_last) and (
        entry.depth is None or entry.depth[0] <= layer.depth <= entry.depth[1]
    )
