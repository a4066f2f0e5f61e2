"""What is wrong with a config, in one line: the place in the file, the key, and the nearest valid word."""

import re
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lrp_cli.errors import closest
from lrp_cli.rulesets.schema import RULE_NAMES, RULE_SPECS, LayerEntry, Ruleset

_SENTENCES = {
    "missing": "the key {key!r} is missing",
    "union_tag_not_found": f"the key 'type' is missing; it is one of {', '.join(RULE_NAMES)}",
    "model_type": "must be a mapping, not {given}",
    "model_attributes_type": "must be the name of a rule or a mapping with 'type', not {given}",
    "tuple_type": "must be a list, not {given}",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_type": "must be text, not {given}",
    "float_type": "must be a number, not {given}",
    "bool_type": "must be true or false, not {given}",
    "finite_number": "must be a finite number, not {given}",
    "greater_than": "must be greater than {gt:g}, not {given}",
    "greater_than_equal": "must be at least {ge:g}, not {given}",
}
"""Our words for pydantic's error types; those that are missing here speak for themselves."""


def complain(error: ValidationError, root: yaml.Node) -> tuple[int, str]:
    """Return the line (counted from 1) and the description of what is wrong first in the file, and how much more is.

    ``root`` is the YAML that the data came from.
    """
    found = [
        (*_locate(details["loc"], root), details)
        for details in error.errors(include_url=False)
        # A list whose items are wrong is not also empty, though pydantic says so.
        if not (details["type"] == "too_short" and details["input"])
    ]
    # A missing key may be there, misspelt: unknown keys are named first.
    line, place, details = min(found, key=lambda item: (item[2]["type"] == "missing", item[0]))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return line, f"{place}: {_explain(details)}{more}".removeprefix(": ")


def one_line(text: str) -> str:
    """Return the text on a single line, with escapes in place of what cannot be printed."""
    joined = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in joined)


def _locate(loc: Sequence[int | str], root: yaml.Node) -> tuple[int, str]:
    """Return the line and the dotted name of the place that pydantic complains about."""
    node, line, place = root, root.start_mark.line + 1, ""
    for part in _without_rule_type(loc):
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                break  # the key that is missing
            key, node = pair
            word = key.value if re.fullmatch(r"[\w-]+", key.value) else repr(key.value)
            line, place = key.start_mark.line + 1, f"{place}.{word}".removeprefix(".")
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line, place = node.start_mark.line + 1, f"{place}[{part}]"
        else:
            break  # a single value where a list may stand
    return line, place


def _without_rule_type(loc: Sequence[int | str]) -> list[int | str]:
    # ("layers", 2, "rule", "epsilon", ...): pydantic inserts the type of the rule, which is no key of the file.
    return [*loc[:3], *loc[4:]] if loc[2:3] == ("rule",) else list(loc)


def _explain(details: ErrorDetails) -> str:
    """Put one of pydantic's errors into words, with the nearest valid ones."""
    error_type, loc, context = details["type"], details["loc"], details.get("ctx", {})
    given = _show(details["input"])
    if error_type == "extra_forbidden":
        return f"unknown key{_nearest(str(loc[-1]), _keys_at(loc[:-1]))}"
    if error_type == "union_tag_invalid":
        return f"unknown rule {context['tag']!r}{_nearest(context['tag'], RULE_NAMES)}"
    if error_type == "literal_error":
        choices = re.findall(r"'([^']+)'", context["expected"])
        if not isinstance(details["input"], str):
            return f"must be one of {', '.join(choices)}, not {given}"
        return f"unknown value {given}{_nearest(details['input'], choices)}"
    if sentence := _SENTENCES.get(error_type):
        return sentence.format(key=loc[-1] if loc else "", given=given, **context)
    return details["msg"]


def _nearest(word: str, choices: Sequence[str]) -> str:
    return closest(word, choices) or f"; known here: {', '.join(choices)}"


def _keys_at(loc: Sequence[int | str]) -> list[str]:
    """Return the keys that a mapping at this place may have."""
    model: type[BaseModel] = Ruleset if not loc else LayerEntry if len(loc) == 2 else RULE_SPECS[str(loc[3])]
    return [field.alias or name for name, field in model.model_fields.items()]


def _show(value: Any) -> str:
    """Return a value in YAML's words, cut to a readable length."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool | float) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
