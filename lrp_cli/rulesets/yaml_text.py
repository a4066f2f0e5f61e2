"""From the text of a config to plain data, with nothing in it that a config has no use for.

The safe loader of PyYAML already makes nothing but plain data. On top of that, anchors and aliases (the means of the
"billion laughs" attack), tags, keys that are not words and repeated keys are refused, each with its line.
"""

import re
from typing import Any

import yaml

_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))


class ConfigTextError(Exception):
    """The text is not that of a config. ``line`` and ``column`` count from 1, and are None where there is no place."""

    def __init__(self, what: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(what)
        self.line = line
        self.column = column


def parse(text: str) -> tuple[dict[str, Any], yaml.MappingNode]:
    """Return the data of a config, and the YAML nodes it came from, which know their lines.

    Raises :class:`ConfigTextError` where the text is not YAML, or not a single mapping without references and tags.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            found = "nothing" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            line = _line_of(root) if root is not None else None
            raise ConfigTextError(f"a config is a mapping with the key 'layers', but here is {found}", line)
        return loader.construct_document(root), root
    except yaml.MarkedYAMLError as error:
        what = f"not valid YAML: {error.problem or error.context}"
        mark = error.problem_mark or error.context_mark
        raise ConfigTextError(what, *((mark.line + 1, mark.column + 1) if mark else ())) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigTextError(f"not valid YAML: the character {text[error.position]!r} is not allowed", line) from error
    except (ValueError, OverflowError) as error:  # an escape such as "\\UFFFFFFFF" that stands for no character
        raise ConfigTextError(
            "not valid YAML: an escape stands for no character", loader.get_mark().line + 1
        ) from error
    except RecursionError as error:
        raise ConfigTextError("not a config: it is nested too deeply") from error


class _Loader(yaml.SafeLoader):
    """The safe loader with the restrictions of this module, and with ``1e-6`` as the number that it is."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call]
        line = _line_of(event)
        if event.anchor is not None:
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise ConfigTextError(f"{sign}{event.anchor}: anchors and aliases are not allowed in a config", line)
        if (tag := getattr(event, "tag", None)) is not None:
            raise ConfigTextError(f"the tag {tag!r} is not allowed in a config", line)
        node = super().compose_node(parent, index)
        if node is not None and node.tag not in _PLAIN_TAGS:  # a date, or one of YAML's signs << and =
            raise ConfigTextError(f"write {node.value!r} in quotes: bare, it has a special meaning in YAML", line)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        elif isinstance(node, yaml.ScalarNode):
            try:
                node.value.encode()
                self.construct_object(node)
            except UnicodeEncodeError as error:  # "\\ud800", half of a surrogate pair
                raise ConfigTextError("not valid YAML: an escape stands for no character", line) from error
            except ValueError as error:  # what looks like a number and is none, such as 0x_, or has 5,000 digits
                raise ConfigTextError("not a number that can be read", line) from error
        return node


def _line_of(item: yaml.Node | yaml.Event) -> int:
    return item.start_mark.line + 1 if item.start_mark else 1


def _check_keys(mapping: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        line = _line_of(key)
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            found = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
            raise ConfigTextError(f"keys are words, but here is {found}", line)
        if key.value in lines:
            raise ConfigTextError(f"the key {key.value!r} is given twice (first in line {lines[key.value]})", line)
        lines[key.value] = line


# YAML 1.1 takes 1e-6 for text: it asks for a point in the mantissa, and for a sign in the exponent.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"), list("-+.0123456789")
)
