"""What a config may say: the rules there are, and which layers each of them is for.

A config is a :class:`Ruleset`: a list of entries, each a selector (which layers) and a rule (what happens there). The
models are immutable, refuse unknown keys, and accept two shorthands: a rule by its name alone (``rule: flat``), and a
single value where a list may stand (``kind: linear``). This module describes rules; the engine carries them out.

Notation of the one-line formulas: inputs ``i`` and neurons ``j``, ``x`` inputs, ``w`` weights, ``z_ij = x_i w_ij``
contributions, ``z_j = sum_i z_ij + b_j`` pre-activations with their bias, ``R`` relevance, ``+`` and ``-`` the positive
and the negative part.
"""

from math import isclose
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, field_validator, model_validator
from pydantic_core import PydanticCustomError

Kind: TypeAlias = Literal["convolution", "linear", "batch_norm", "any"]
Attention: TypeAlias = Literal["cp-lrp", "attnlrp"]
Bias: TypeAlias = Literal["use", "ignore"]
RuleName: TypeAlias = Literal["lrp-0", "epsilon", "gamma", "alpha-beta", "zplus", "flat", "wsquare", "zbox"]

KINDS: tuple[str, ...] = get_args(Kind)
RULE_NAMES: tuple[str, ...] = get_args(RuleName)

# Strict: neither `true` nor a quoted number passes for a number.
Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive: TypeAlias = Annotated[Number, Field(gt=0)]
NonNegative: TypeAlias = Annotated[Number, Field(ge=0)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]


def _as_tuple(value: Any) -> Any:
    """Turn a single value, or a list, into the tuple that is stored."""
    if value is None or isinstance(value, tuple):
        return value
    return tuple(value) if isinstance(value, list) else (value,)


def _as_range(value: Any) -> Any:
    """Turn a list of two into a tuple, and refuse any other length."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return tuple(value)
    raise PydanticCustomError("depth_range", "must be a list of two numbers, [from, to]")


Kinds: TypeAlias = Annotated[
    tuple[Kind, ...], Field(min_length=1), BeforeValidator(_as_tuple, json_schema_input_type=Kind | list[Kind])
]
Names: TypeAlias = Annotated[
    tuple[Text, ...], Field(min_length=1), BeforeValidator(_as_tuple, json_schema_input_type=Text | list[Text])
]
Bounds: TypeAlias = Annotated[
    tuple[Number, ...], Field(min_length=1), BeforeValidator(_as_tuple, json_schema_input_type=Number | list[Number])
]
Depth: TypeAlias = Annotated[
    tuple[Number, Number],
    BeforeValidator(_as_range, json_schema_input_type=Annotated[list[Number], Field(min_length=2, max_length=2)]),
]


class _Spec(BaseModel):
    """Immutable, and strict about the names of its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _RuleSpec(_Spec):
    """A rule. In Python its class says which; in a config the key ``type`` does, and cannot be left out."""

    model_config = ConfigDict(json_schema_extra={"required": ["type"]})


class LRP0Spec(_RuleSpec):
    """LRP-0: R_i = sum_j x_i w_ij / z_j R_j (Bach et al. 2015, eq. 56)."""

    type: Literal["lrp-0"] = "lrp-0"
    bias: Bias = Field("use", description="whether the bias takes part in the denominator (and takes its share)")
    stabiliser: Positive = Field(1e-6, description="added to a denominator; LRP-0 divides only where bias is ignore")


class EpsilonSpec(_RuleSpec):
    """Epsilon: R_i = sum_j x_i w_ij / (z_j + epsilon sign(z_j)) R_j (Bach et al. 2015, eq. 58)."""

    type: Literal["epsilon"] = "epsilon"
    epsilon: Positive = Field(1e-6, description="what is added to the denominator, with the denominator's sign")
    relative: StrictBool = Field(
        False, description="whether epsilon is a multiple of the root mean square of the layer's pre-activations"
    )
    bias: Bias = Field("use", description="whether the bias takes part in the denominator (and takes its share)")


class GammaSpec(_RuleSpec):
    """Gamma: R_i = sum_j x_i (w_ij + gamma w_ij+) / sum_i' (same) R_j (Montavon et al. 2019, section 10.2.1)."""

    type: Literal["gamma"] = "gamma"
    gamma: NonNegative = Field(0.25, description="how much positive contributions are favoured; 0 is LRP-0")
    bias: Bias = Field("use", description="whether the bias takes part in the denominator (and takes its share)")
    stabiliser: Positive = Field(1e-6, description="added to the denominator, with the denominator's sign")


class AlphaBetaSpec(_RuleSpec):
    """Alpha-beta: R_i = sum_j (alpha z_ij+ / z_j+ - beta z_ij- / z_j-) R_j (Bach et al. 2015, eq. 60)."""

    type: Literal["alpha-beta"] = "alpha-beta"
    alpha: Annotated[Number, Field(ge=1)] = Field(2.0, description="weight of the positive contributions")
    beta: NonNegative = Field(1.0, description="weight of the negative contributions; alpha - beta must be 1")
    bias: Bias = Field("use", description="whether the bias takes part in the denominators (and takes its share)")
    stabiliser: Positive = Field(1e-6, description="added to the denominators, with their sign")

    @model_validator(mode="after")
    def _conserves(self) -> Self:
        if not isclose(self.alpha - self.beta, 1.0, abs_tol=1e-9):
            raise PydanticCustomError(
                "alpha_beta",
                "alpha - beta must be 1, else relevance is not conserved; here it is {alpha} - {beta} = {difference}",
                {
                    "alpha": f"{self.alpha:g}",
                    "beta": f"{self.beta:g}",
                    "difference": f"{self.alpha - self.beta:g}",
                },
            )
        return self


class ZPlusSpec(_RuleSpec):
    """z+: R_i = sum_j (x_i w_ij)+ / sum_i' (x_i' w_i'j)+ R_j (Montavon et al. 2017, z+-rule; alpha 1, beta 0)."""

    type: Literal["zplus"] = "zplus"
    bias: Bias = Field("use", description="whether a positive bias takes part in the denominator (and takes its share)")
    stabiliser: Positive = Field(1e-6, description="added to the denominator")


class FlatSpec(_RuleSpec):
    """Flat: R_i = sum_j 1 / (number of inputs of j) R_j, whatever the weights (Lapuschkin et al. 2019, methods)."""

    type: Literal["flat"] = "flat"


class WSquareSpec(_RuleSpec):
    """w²: R_i = sum_j w_ij² / sum_i' w_i'j² R_j, whatever the inputs (Montavon et al. 2017, w²-rule)."""

    type: Literal["wsquare"] = "wsquare"
    stabiliser: Positive = Field(1e-6, description="added to the denominator")


class ZBoxSpec(_RuleSpec):
    """z-box: R_i = sum_j (x_i w_ij - l_i w_ij+ - h_i w_ij-) / sum_i' (same) R_j (Montavon et al. 2017, z^B-rule)."""

    type: Literal["zbox"] = "zbox"
    low: Bounds | None = Field(
        None, description="smallest input l, one or one a channel; left out, black as the model's preprocessing maps it"
    )
    high: Bounds | None = Field(
        None, description="largest input h, one or one a channel; left out, white as the model's preprocessing maps it"
    )
    stabiliser: Positive = Field(1e-6, description="added to the denominator")

    @model_validator(mode="after")
    def _is_a_box(self) -> Self:
        if self.low is None or self.high is None:
            return self
        channels = max(len(self.low), len(self.high))
        if not {len(self.low), len(self.high)} <= {1, channels}:
            raise PydanticCustomError(
                "zbox_channels",
                "low has {low} values and high has {high}; give as many of each, or a single one for all channels",
                {"low": len(self.low), "high": len(self.high)},
            )
        lows, highs = (bounds * channels if len(bounds) == 1 else bounds for bounds in (self.low, self.high))
        for low, high in zip(lows, highs, strict=True):
            if not low < high:
                raise PydanticCustomError(
                    "zbox_order",
                    "low must be less than high in every channel; here {low} is not less than {high}",
                    {"low": f"{low:g}", "high": f"{high:g}"},
                )
        return self


RuleSpec: TypeAlias = LRP0Spec | EpsilonSpec | GammaSpec | AlphaBetaSpec | ZPlusSpec | FlatSpec | WSquareSpec | ZBoxSpec


def _expand_rule(value: Any) -> Any:
    """Turn the shorthand ``rule: flat`` into ``rule: {type: flat}``."""
    return {"type": value} if isinstance(value, str) else value


def _or_rule_name(schema: dict[str, Any]) -> None:
    """Add the shorthand to the JSON schema of a rule."""
    mapping = {key: schema.pop(key) for key in ("oneOf", "discriminator")}
    schema["anyOf"] = [{"type": "string", "enum": list(RULE_NAMES)}, mapping]


class LayerEntry(_Spec):
    """One line of a config: a rule, and the layers it is for.

    Every selector key that is given must match; without any, the entry matches every layer. Positions are counted in
    order of execution over the convolutions and linear layers, ``n`` of them: layer ``i`` has depth ``i / (n - 1)``, 0
    where ``n`` is 1. A batch norm has the position of the convolution or linear layer that comes next (depth 1 after
    the last), and is itself neither first nor last.
    """

    model_config = ConfigDict(populate_by_name=True)

    kind: Kinds | None = Field(
        None, description="one or several of them; batch_norm is one that could not be merged into a neighbouring layer"
    )
    class_: Names | None = Field(
        None, alias="class", description="class name of the module such as Conv2d, one or several, upper and lower case"
    )
    name: Names | None = Field(
        None,
        description="pattern for the module's dotted name such as features.*, one or several, upper and lower case",
    )
    first: StrictBool | None = Field(None, description="true: only the first layer; false: every layer but the first")
    last: StrictBool | None = Field(None, description="true: only the last layer; false: every layer but the last")
    depth: Depth | None = Field(None, description="[from, to], both included: 0 is the first layer, 1 the last")
    rule: Annotated[RuleSpec, Field(discriminator="type"), BeforeValidator(_expand_rule)] = Field(
        description="name of a rule, or a mapping of its type and parameters", json_schema_extra=_or_rule_name
    )

    @field_validator("class_")
    @classmethod
    def _bare_class_names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if not name.isidentifier():
                raise PydanticCustomError(
                    "class_name",
                    "{name} is not a class name; write it alone, such as Conv2d, without module path or wildcards",
                    {"name": repr(name)},
                )
        return names

    @field_validator("depth")
    @classmethod
    def _range_of_depths(cls, depth: tuple[float, float] | None) -> tuple[float, float] | None:
        if depth is not None and not 0 <= depth[0] <= depth[1] <= 1:
            raise PydanticCustomError(
                "depth_range",
                "must be [from, to] with 0 <= from <= to <= 1; here it is [{low}, {high}]",
                {"low": f"{depth[0]:g}", "high": f"{depth[1]:g}"},
            )
        return depth


class Ruleset(_Spec):
    """A config: which rule is used where. The first entry that matches a layer decides, so their order matters."""

    description: str = Field("", description="one line that says what the config is for")
    source: str = Field("", description="where the recipe comes from: authors, year, DOI or arXiv id")
    layers: Annotated[
        tuple[LayerEntry, ...],
        Field(min_length=1, description="entries; the first that matches a layer decides"),
    ]
    attention: Attention = Field(
        "cp-lrp",
        description="softmax attention: cp-lrp holds the attention weights constant (Ali et al. 2022), attnlrp "
        "propagates through them too (Achtibat et al. 2024)",
    )

    @field_validator("layers")
    @classmethod
    def _one_box(cls, layers: tuple[LayerEntry, ...]) -> tuple[LayerEntry, ...]:
        boxes = [entry.rule for entry in layers if isinstance(entry.rule, ZBoxSpec)]
        ends = [[box.low for box in boxes], [box.high for box in boxes]]
        # Left out, an end is what another entry says; 0 is [0, 0, 0].
        if any(len({*filter(None, map(_shortest, end))}) > 1 for end in ends):
            raise PydanticCustomError(
                "one_box", "zbox entries give different low or high; they are those of the model's input, which is one"
            )
        return layers

    @field_validator("description")
    @classmethod
    def _one_line(cls, text: str) -> str:
        if len(text.strip().splitlines()) > 1:
            raise PydanticCustomError("one_line", "must be one line")
        return text.strip()


def _shortest(bounds: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Return bounds that are all the same as a single one."""
    return bounds[:1] if bounds is not None and len({*bounds}) == 1 else bounds


RULE_SPECS: dict[str, type[_RuleSpec]] = {spec.model_fields["type"].default: spec for spec in get_args(RuleSpec)}
"""The class of each rule, by its name in configs."""
