"""The names of the classes: from a file, or ImageNet's."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from lrp_cli.errors import UsageError

IMAGENET_CLASSES = 1000


@cache
def imagenet_labels() -> tuple[str, ...]:
    """Return the names of ImageNet's 1000 classes, in order, as torchvision spells them."""
    text = resources.files("lrp_cli.models").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def numbered_labels(count: int) -> tuple[str, ...]:
    """Return ``class 0``, ``class 1``, ... for classes without names."""
    return tuple(f"class {index}" for index in range(count))


def read_labels(path: Path, count: int) -> tuple[str, ...]:
    """Read the names of ``count`` classes from a file.

    ``.json`` holds a list of names, or an object ``{"0": name, ...}`` in which a name may also be a pair of an
    identifier and the name, as in ImageNet's class index; any other file has one name a line.

    Raises:
        UsageError: the file cannot be read, has another shape, or names another number of classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{path}: labels must be UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{path}: labels cannot be read: {(error.strerror or str(error)).lower()}") from None
    names = _from_json(path, text) if path.suffix.lower() == ".json" else _from_lines(path, text)
    if len(names) != count:
        raise UsageError(f"{path}: names {len(names)} classes, but the model has {count}")
    return names


def _from_lines(path: Path, text: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not all(lines):
        raise UsageError(f"{path}: line {lines.index('') + 1} is empty; give each class one line")
    return tuple(lines)


def _from_json(path: Path, text: str) -> tuple[str, ...]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON: {error}") from None
    if isinstance(content, Mapping):
        wanted = [str(index) for index in range(len(content))]
        if set(content) != set(wanted):
            raise UsageError(f'{path}: the keys must be the class indices "0" to "{len(content) - 1}"')
        content = [content[key] for key in wanted]
    if not isinstance(content, list):
        raise UsageError(f"{path}: labels must be a list of names or an object of index and name")
    names = tuple(_name(entry) for entry in content)
    if not all(names):
        raise UsageError(f"{path}: the label of class {names.index('')} is not a name")
    return names


def _name(entry: Any) -> str:
    """Return the name in ``entry``, the last of a pair, or an empty string where there is none."""
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2:
        entry = entry[1]
    return entry.strip() if isinstance(entry, str) else ""
