"""What a config may say, and what it may not."""

import json

import pytest
from pydantic import ValidationError

from lrp_cli.rulesets import (
    AlphaBetaSpec,
    EpsilonSpec,
    FlatSpec,
    GammaSpec,
    LayerEntry,
    LRP0Spec,
    Ruleset,
    WSquareSpec,
    ZBoxSpec,
    ZPlusSpec,
    json_schema,
)
from lrp_cli.rulesets.schema import KINDS, RULE_NAMES, RULE_SPECS

INF, NAN = float("inf"), float("nan")


def entry(**keys: object) -> LayerEntry:
    return LayerEntry.model_validate({"rule": "epsilon", **keys})


def test_every_rule_has_a_class_a_name_and_a_formula() -> None:
    classes = {LRP0Spec, EpsilonSpec, GammaSpec, AlphaBetaSpec, ZPlusSpec, FlatSpec, WSquareSpec, ZBoxSpec}
    assert set(RULE_SPECS.values()) == classes
    assert tuple(RULE_SPECS) == RULE_NAMES
    for spec in classes:
        (line,) = (spec.__doc__ or "").splitlines()
        assert "R_i = " in line
        assert "20" in line  # the year of its source


def test_defaults() -> None:
    assert EpsilonSpec().model_dump() == {"type": "epsilon", "epsilon": 1e-6, "relative": False, "bias": "use"}
    assert GammaSpec().gamma == 0.25
    assert (AlphaBetaSpec().alpha, AlphaBetaSpec().beta) == (2, 1)
    assert (ZBoxSpec().low, ZBoxSpec().high) == (None, None)
    assert Ruleset.model_validate({"layers": [{"rule": "flat"}]}).attention == "cp-lrp"


@pytest.mark.parametrize("name", RULE_NAMES)
def test_a_name_alone_is_the_rule_with_its_defaults(name: str) -> None:
    assert entry(rule=name) == entry(rule={"type": name}) == LayerEntry(rule=RULE_SPECS[name]())  # type: ignore[arg-type]


def test_single_values_stand_for_lists() -> None:
    assert entry(kind="linear") == entry(kind=["linear"])
    assert entry(**{"class": "Conv2d"}) == entry(class_=["Conv2d"])
    assert entry(name="features.*").name == ("features.*",)
    assert ZBoxSpec.model_validate({"low": -2, "high": 2}) == ZBoxSpec(low=(-2.0,), high=(2.0,))


@pytest.mark.parametrize("model", [entry(), EpsilonSpec(), Ruleset(layers=(entry(),))])
def test_models_are_frozen_and_hashable(model: LayerEntry | EpsilonSpec | Ruleset) -> None:
    field = next(iter(type(model).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model, field, None)
    assert len({model, model.model_copy()}) == 1


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "epsilon", "epsilon": 0},
        {"type": "epsilon", "epsilon": -1e-6},
        {"type": "epsilon", "epsilon": NAN},
        {"type": "epsilon", "epsilon": INF},
        {"type": "epsilon", "epsilon": True},
        {"type": "epsilon", "epsilon": "1e-6"},
        {"type": "epsilon", "epsilon": 10**400},
        {"type": "epsilon", "relative": 1},
        {"type": "epsilon", "relative": "yes"},
        {"type": "epsilon", "bias": "zero"},
        {"type": "epsilon", "stabiliser": 1e-6},  # epsilon is its own
        {"type": "flat", "bias": "use"},  # has no use for one
        {"type": "wsquare", "bias": "use"},
        {"type": "zbox", "bias": "use"},
        {"type": "gamma", "gamma": -0.1},
        {"type": "gamma", "stabiliser": 0},
        {"type": "alpha-beta", "alpha": 2, "beta": 2},
        {"type": "alpha-beta", "alpha": 3},
        {"type": "alpha-beta", "alpha": 0.5, "beta": -0.5},
        {"type": "alpha-beta", "alpha": 2 + 1e-6, "beta": 1},
        {"type": "zbox", "low": 1, "high": 1},
        {"type": "zbox", "low": [0, 2, 0], "high": 1},
        {"type": "zbox", "low": [0, 0], "high": [1, 1, 1]},
        {"type": "zbox", "low": []},
        {"type": "zbox", "low": [0, NAN, 0]},
        {"type": "pass"},
        {"type": None},
        {"gamma": 0.25},
        {},
        "LRP-0",
        "",
        0,
        None,
        ["flat"],
    ],
)
def test_refused_rules(rule: object) -> None:
    with pytest.raises(ValidationError):
        entry(rule=rule)


@pytest.mark.parametrize(
    "keys",
    [
        {"kind": "conv"},
        {"kind": ["linear", "Linear"]},
        {"kind": []},
        {"kind": True},
        {"class": "torch.nn.Conv2d"},
        {"class": "Conv*"},
        {"class": ["Conv2d", ""]},
        {"name": ""},
        {"name": 3},
        {"first": 1},
        {"last": "true"},
        {"depth": 0.5},
        {"depth": [0.5]},
        {"depth": [0, 0.5, 1]},
        {"depth": [0.6, 0.5]},
        {"depth": [-0.1, 0.5]},
        {"depth": [0.5, 1.1]},
        {"depth": [0, NAN]},
        {"depth": [False, True]},
        {"index": 0},
    ],
)
def test_refused_selectors(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        entry(**keys)


@pytest.mark.parametrize("alpha, beta", [(1, 0), (2, 1), (1.3, 0.3), (1.1, 0.1)])
def test_alpha_beta_takes_what_conserves_up_to_rounding(alpha: float, beta: float) -> None:
    assert AlphaBetaSpec(alpha=alpha, beta=beta).alpha == alpha


@pytest.mark.parametrize("content", [{}, {"layers": []}, {"layers": None}, {"layers": {"rule": "flat"}}])
def test_a_config_without_layers_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Ruleset.model_validate(content)


def test_the_description_is_one_line() -> None:
    layers = [{"rule": "flat"}]
    assert Ruleset.model_validate({"layers": layers, "description": " one \n"}).description == "one"
    with pytest.raises(ValidationError, match="one line"):
        Ruleset.model_validate({"layers": layers, "description": "one\ntwo"})


def test_json_schema_knows_names_shorthands_and_required_keys() -> None:
    schema = json_schema()
    json.dumps(schema, allow_nan=False)
    assert schema["required"] == ["layers"]
    layer = schema["$defs"]["LayerEntry"]
    assert set(layer["properties"]) == {"kind", "class", "name", "first", "last", "depth", "rule"}
    assert layer["additionalProperties"] is False
    kind_word, kind_list, _ = layer["properties"]["kind"]["anyOf"]
    assert tuple(kind_word["enum"]) == tuple(kind_list["items"]["enum"]) == KINDS
    rule_word, rule_mapping = layer["properties"]["rule"]["anyOf"]
    assert tuple(rule_word["enum"]) == RULE_NAMES
    assert set(rule_mapping["discriminator"]["mapping"]) == set(RULE_NAMES)
    for spec in RULE_SPECS.values():
        assert schema["$defs"][spec.__name__]["required"] == ["type"]
