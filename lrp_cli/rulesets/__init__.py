"""Configs: which relevance rule is used in which layer of a network.

``schema`` says what a config may contain, ``catalogue`` finds and reads configs, ``selection`` picks the entry of a
layer. None of them knows torch; ``assignment``, which hands the rules to the engine, is imported where it is needed.
"""

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
