"""From a config to the engine: each layer's entry becomes the rule object that carries it out. Imports torch."""

from functools import singledispatch

from torch import nn

from lrp_cli.engine import rules
from lrp_cli.engine.layers import Layer as EngineLayer
from lrp_cli.rulesets.catalogue import NamedRuleset
from lrp_cli.rulesets.schema import (
    AlphaBetaSpec,
    EpsilonSpec,
    FlatSpec,
    GammaSpec,
    LayerEntry,
    LRP0Spec,
    RuleSpec,
    WSquareSpec,
    ZBoxSpec,
    ZPlusSpec,
)
from lrp_cli.rulesets.selection import Layer, candidates, describe, select, unmatched


class RulesetAssignment:
    """Assigns rules to layers as a config says: the engine's ``Assignment``."""

    def __init__(self, config: NamedRuleset) -> None:
        self.config = config
        # A network asks the same of the same layers with every batch.
        self._candidates: dict[EngineLayer, list[rules.Rule]] = {}
        self._rules: dict[tuple[EngineLayer, int], rules.Rule] = {}

    def needs_output(self, layer: EngineLayer) -> rules.OutputUse:
        """Tell what the rules that the layer may get read of the layer's output."""
        return max((rule.needs_output for rule in self._candidates_for(layer)), default=rules.OutputUse.NONE)

    def reads_input(self, layer: EngineLayer) -> bool:
        """Tell whether any rule that the layer may get reads more of the layer's input than its shape."""
        return any(rule.reads_input for rule in self._candidates_for(layer))

    def rule(self, layer: EngineLayer, count: int) -> rules.Rule:
        """Return the layer's rule.

        Raises:
            ConfigError: no entry matches the layer.
        """
        if (layer, count) not in self._rules:
            self._rules[layer, count] = engine_rule(self._entry(layer, count).rule)
        return self._rules[layer, count]

    def explain(self, layer: EngineLayer, count: int) -> tuple[str, str]:
        """Return the layer's rule in words, such as ``gamma 0.25``, and which of its properties it was chosen by."""
        entry = self._entry(layer, count)
        return _in_words(entry.rule), describe(entry)

    def unmatched(self, network: nn.Module) -> list[str]:
        """Return, in words, which names and classes in the config no layer has; nothing before there were layers."""
        layers = {*self._candidates, *(layer for layer, _ in self._rules)}
        if not layers:
            return []
        modules = [*network.named_modules()]
        names = {layer.name for layer in layers}.union(name for name, _ in modules)
        classes = {layer.class_name for layer in layers}.union(type(module).__name__ for _, module in modules)
        return unmatched(self.config.ruleset, sorted(names), sorted(classes))

    def _candidates_for(self, layer: EngineLayer) -> list[rules.Rule]:
        if layer not in self._candidates:
            entries = candidates(
                self.config.ruleset, name=layer.name, class_name=layer.class_name, kind=layer.kind, index=layer.index
            )
            self._candidates[layer] = [engine_rule(entry.rule) for entry in entries]
        return self._candidates[layer]

    def _entry(self, layer: EngineLayer, count: int) -> LayerEntry:
        described = Layer(layer.name, layer.class_name, layer.kind, layer.index, count)
        return select(self.config.ruleset, described, config=self.config.name)


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


def _in_words(spec: RuleSpec) -> str:
    """Return a rule with its parameter, and whatever else is not at its default."""
    main: dict[str, str] = {"epsilon": "{epsilon:g}", "gamma": "{gamma:g}", "alpha-beta": "{alpha:g} {beta:g}"}
    settings = spec.model_dump()
    others = spec.model_dump(exclude={"type", "epsilon", "gamma", "alpha", "beta"}, exclude_defaults=True)
    words = [spec.type, main.get(spec.type, "").format(**settings)]
    words += [f"({', '.join(f'{key} {value}' for key, value in others.items())})"] if others else []
    return " ".join(filter(None, words))
