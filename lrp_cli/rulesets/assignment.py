"""From a config to the engine: each layer's entry becomes the rule object that carries it out. Imports torch."""

from functools import singledispatch

from lrp_cli.engine import rules
from lrp_cli.engine.layers import Layer as EngineLayer
from lrp_cli.rulesets.catalogue import NamedRuleset
from lrp_cli.rulesets.schema import (
    AlphaBetaSpec,
    EpsilonSpec,
    FlatSpec,
    GammaSpec,
    LRP0Spec,
    RuleSpec,
    WSquareSpec,
    ZBoxSpec,
    ZPlusSpec,
)
from lrp_cli.rulesets.selection import Layer, candidates, select


class RulesetAssignment:
    """Assigns rules to layers as a config says: the engine's ``Assignment``."""

    def __init__(self, config: NamedRuleset) -> None:
        self.config = config

    def needs_output(self, layer: EngineLayer) -> bool:
        """Tell whether a rule that the layer may get reads the layer's output."""
        entries = candidates(
            self.config.ruleset, name=layer.name, class_name=layer.class_name, kind=layer.kind, index=layer.index
        )
        return any(engine_rule(entry.rule).needs_output for entry in entries)

    def rule(self, layer: EngineLayer, count: int) -> rules.Rule:
        """Return the layer's rule.

        Raises:
            ConfigError: no entry matches the layer.
        """
        described = Layer(layer.name, layer.class_name, layer.kind, layer.index, count)
        return engine_rule(select(self.config.ruleset, described, config=self.config.name).rule)


@singledispatch
def engine_rule(spec: RuleSpec) -> rules.Rule:
    """Return the rule that a config describes."""
    raise TypeError(f"no rule for {type(spec).__name__}")


@engine_rule.register
def _(spec: LRP0Spec) -> rules.Rule:
    # Without the bias the denominator is no longer the output, and has to be divided by.
    return rules.LRP0() if spec.bias == "use" else rules.Epsilon(spec.stabiliser, use_bias=False)


@engine_rule.register
def _(spec: EpsilonSpec) -> rules.Rule:
    return rules.Epsilon(spec.epsilon, relative=spec.relative, use_bias=spec.bias == "use")


@engine_rule.register
def _(spec: GammaSpec) -> rules.Rule:
    return rules.Gamma(spec.gamma, spec.stabiliser, use_bias=spec.bias == "use")


@engine_rule.register
def _(spec: AlphaBetaSpec) -> rules.Rule:
    return rules.AlphaBeta(spec.alpha, spec.beta, spec.stabiliser, use_bias=spec.bias == "use")


@engine_rule.register
def _(spec: ZPlusSpec) -> rules.Rule:
    return rules.ZPlus(spec.stabiliser, use_bias=spec.bias == "use")


@engine_rule.register
def _(spec: FlatSpec) -> rules.Rule:
    return rules.Flat()


@engine_rule.register
def _(spec: WSquareSpec) -> rules.Rule:
    return rules.WSquare(spec.stabiliser)


@engine_rule.register
def _(spec: ZBoxSpec) -> rules.Rule:
    return rules.ZBox(spec.stabiliser)
