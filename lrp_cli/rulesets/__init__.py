"""Configs: which relevance rule is used in which layer of a network.

``schema`` says what a config may contain, ``catalogue`` finds and reads configs, ``selection`` picks the entry of a
layer. None of them knows torch; ``assignment``, which hands the rules to the engine, is imported where it is needed.

The public names are loaded on first use, so that importing this package does not import pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp_cli.rulesets.catalogue import NamedRuleset, json_schema, load, presets
    from lrp_cli.rulesets.schema import (
        AlphaBetaSpec,
        EpsilonSpec,
        FlatSpec,
        GammaSpec,
        LayerEntry,
        LRP0Spec,
        Ruleset,
        RuleSpec,
        WSquareSpec,
        ZBoxSpec,
        ZPlusSpec,
    )
    from lrp_cli.rulesets.selection import Layer, candidates, describe, select, shadowed

__all__ = [
    "AlphaBetaSpec",
    "EpsilonSpec",
    "FlatSpec",
    "GammaSpec",
    "LRP0Spec",
    "Layer",
    "LayerEntry",
    "NamedRuleset",
    "RuleSpec",
    "Ruleset",
    "WSquareSpec",
    "ZBoxSpec",
    "ZPlusSpec",
    "candidates",
    "describe",
    "json_schema",
    "load",
    "presets",
    "select",
    "shadowed",
]

_HOME = {
    **dict.fromkeys(["NamedRuleset", "json_schema", "load", "presets"], "catalogue"),
    **dict.fromkeys(["Layer", "candidates", "describe", "select", "shadowed"], "selection"),
}
"""Where a name is defined; the others are in ``schema``."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_HOME.get(name, 'schema')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
