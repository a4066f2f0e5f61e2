"""Which entry a layer gets."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrp_cli.errors import ConfigError
from lrp_cli.rulesets import Layer, LayerEntry, Ruleset, candidates, describe, select, shadowed
from lrp_cli.rulesets.selection import unmatched


def ruleset(*entries: dict[str, object]) -> Ruleset:
    """Entries with an epsilon of their own each, so that no two are equal."""
    layers = [{"rule": {"type": "epsilon", "epsilon": 1 + i}, **entry} for i, entry in enumerate(entries)]
    return Ruleset.model_validate({"description": "a test", "layers": layers})


def winner(rules: Ruleset, layer: Layer) -> int:
    return rules.layers.index(select(rules, layer))


def layer(name: str = "features.0", class_name: str = "Conv2d", kind: str = "convolution", index: int = 0, n: int = 5):
    return Layer(name, class_name, kind, index, n)


def test_the_first_match_wins() -> None:
    rules = ruleset({"kind": "linear"}, {}, {"kind": "convolution"})
    assert winner(rules, layer(kind="linear")) == 0
    assert winner(rules, layer(kind="convolution")) == 1
    assert winner(rules, layer(kind="batch_norm")) == 1


@pytest.mark.parametrize(
    "selector, matching, other",
    [
        ({"kind": "linear"}, layer(kind="linear"), layer(kind="convolution")),
        ({"kind": ["linear", "batch_norm"]}, layer(kind="batch_norm"), layer(kind="convolution")),
        ({"class": "Conv2d"}, layer(class_name="Conv2d"), layer(class_name="Conv2dSame")),
        ({"class": ["Linear", "Conv1d"]}, layer(class_name="Conv1d"), layer(class_name="Conv2d")),
        ({"class": "conv2d"}, layer(class_name="conv2d"), layer(class_name="Conv2d")),
        ({"name": "features.*"}, layer(name="features.3.conv"), layer(name="classifier.0")),
        ({"name": "features.*"}, layer(name="features."), layer(name="features")),
        ({"name": "Block.[0-2]"}, layer(name="Block.2"), layer(name="block.2")),
        ({"name": ["a", "b.?"]}, layer(name="b.1"), layer(name="b.12")),
        ({"first": True}, layer(index=0), layer(index=1)),
        ({"first": True}, layer(index=0), layer(index=0, kind="batch_norm")),
        ({"first": False}, layer(index=1), layer(index=0)),
        ({"last": True}, layer(index=4), layer(index=3)),
        ({"last": True}, layer(index=4), layer(index=4, kind="batch_norm")),
        ({"last": False}, layer(index=3), layer(index=4)),
        ({"first": True, "last": True}, layer(index=0, n=1), layer(index=0, n=2)),
        ({"first": True, "kind": "linear"}, layer(kind="linear"), layer(kind="convolution")),
        ({"first": True, "kind": "linear"}, layer(kind="linear"), layer(kind="linear", index=2)),
        ({"name": "a.*", "class": "Conv2d"}, layer("a.b", "Conv2d"), layer("a.b", "Linear")),
    ],
)
def test_selectors(selector: dict[str, object], matching: Layer, other: Layer) -> None:
    rules = ruleset(selector, {})
    assert winner(rules, matching) == 0
    assert winner(rules, other) == 1


@pytest.mark.parametrize("kind", ["convolution", "linear", "batch_norm", "something new"])
@pytest.mark.parametrize("selector", [{}, {"kind": "any"}, {"kind": ["linear", "any"]}])
def test_no_selector_and_any_match_every_kind(kind: str, selector: dict[str, object]) -> None:
    assert winner(ruleset(selector), layer(kind=kind)) == 0


@given(st.integers(1, 40), st.data())
def test_depth_is_the_fraction_of_the_way_from_the_first_layer_to_the_last(count: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    low, high = sorted((data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))))
    depth = float(Fraction(index, count - 1)) if count > 1 else 0.0
    assert (winner(ruleset({"depth": [low, high]}, {}), layer(index=index, n=count)) == 0) == (low <= depth <= high)


def test_depth_includes_both_ends() -> None:
    rules = ruleset({"depth": [0.25, 0.5]}, {})
    assert [winner(rules, layer(index=i, n=5)) for i in range(5)] == [1, 0, 0, 1, 1]


def test_depth_of_a_single_layer_and_of_batch_norms() -> None:
    assert layer(index=0, n=1).depth == 0
    assert layer(kind="batch_norm", index=5, n=5).depth == 1  # after the last layer
    assert layer(kind="batch_norm", index=1, n=1).depth == 1
    assert layer(kind="batch_norm", index=0, n=1).depth == 0


def test_no_match_is_an_error_that_says_what_to_add() -> None:
    rules = ruleset({"kind": "linear"}, {"first": True})
    with pytest.raises(ConfigError) as caught:
        select(rules, layer("stages.1.norm", "BatchNorm2d", "batch_norm", 3), config="mine.yaml")
    message = str(caught.value)
    for part in ("stages.1.norm", "BatchNorm2d", "batch_norm", "mine.yaml", "- rule: epsilon"):
        assert part in message
    assert len(message.splitlines()) == 1
    with pytest.raises(ConfigError, match=re.escape("a test")):
        select(rules, layer(kind="batch_norm"))


def test_candidates_end_with_the_first_certain_match() -> None:
    rules = ruleset({"last": True}, {"depth": [0.5, 1]}, {"kind": "linear"}, {"kind": "convolution"}, {})
    names = {"name": "x", "class_name": "Conv2d"}

    def indices(kind: str, index: int) -> list[int]:
        return [rules.layers.index(entry) for entry in candidates(rules, **names, kind=kind, index=index)]

    assert indices("convolution", 3) == [0, 1, 3]
    assert indices("linear", 3) == [0, 1, 2]
    assert indices("convolution", 0) == [0, 3]  # depth 0, however many layers follow
    assert indices("batch_norm", 3) == [1, 4]  # never last


def test_candidates_decide_first_at_once() -> None:
    rules = ruleset({"first": True}, {"first": False, "kind": "linear"}, {})
    found = [candidates(rules, name="x", class_name="C", kind="linear", index=i) for i in (0, 1)]
    assert found == [[rules.layers[0]], [rules.layers[1]]]


def test_candidates_may_be_none() -> None:
    assert candidates(ruleset({"kind": "linear"}), name="x", class_name="C", kind="convolution", index=0) == []


KINDS = st.sampled_from(["convolution", "linear", "batch_norm"])
FRACTIONS = st.sampled_from([0.0, 0.25, 0.5, 1.0])
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "kind": KINDS | st.just("any"),
        "class": st.sampled_from(["A", "B"]),
        "name": st.sampled_from(["a*", "*b"]),
        "first": st.booleans(),
        "last": st.booleans(),
        "depth": st.tuples(FRACTIONS, FRACTIONS).map(sorted),
    },
)
RULESETS = st.lists(SELECTORS, min_size=1, max_size=5).map(lambda entries: ruleset(*entries))


def layers_of(data: st.DataObject, count: int) -> Layer:
    kind = data.draw(KINDS)
    index = data.draw(st.integers(0, count if kind == "batch_norm" else count - 1))
    return Layer(data.draw(st.sampled_from(["a", "b", "ab"])), data.draw(st.sampled_from("AB")), kind, index, count)


@given(RULESETS, st.integers(1, 6), st.data())
def test_the_winner_is_always_a_candidate(rules: Ruleset, count: int, data: st.DataObject) -> None:
    one = layers_of(data, count)
    known = {"name": one.name, "class_name": one.class_name, "kind": one.kind, "index": one.index}
    try:
        chosen = select(rules, one)
    except ConfigError:
        return
    assert chosen in candidates(rules, **known)


@given(RULESETS, st.integers(1, 6), st.data())
def test_a_shadowed_entry_never_wins(rules: Ruleset, count: int, data: st.DataObject) -> None:
    dead = {later for later, _ in shadowed(rules)}
    try:
        assert winner(rules, layers_of(data, count)) not in dead
    except ConfigError:
        return


@pytest.mark.parametrize(
    "entries, expected",
    [
        ([{}, {"kind": "linear"}], [(1, 0)]),
        ([{"kind": "linear"}, {}], []),
        ([{"kind": "any"}, {"first": True}], [(1, 0)]),
        ([{"kind": ["linear", "convolution"]}, {"kind": "linear", "first": True}], [(1, 0)]),
        ([{"kind": "linear", "first": True}, {"kind": "linear"}], []),
        ([{"depth": [0, 0.5]}, {"depth": [0.1, 0.4]}, {"depth": [0.1, 0.6]}], [(1, 0)]),
        ([{"name": "a.*"}, {"name": "b.*"}, {"name": ["a.*"]}], [(2, 0)]),
    ],
)
def test_shadowed(entries: list[dict[str, object]], expected: list[tuple[int, int]]) -> None:
    assert shadowed(ruleset(*entries)) == expected


@pytest.mark.parametrize(
    "selector, words",
    [
        ({}, "any layer"),
        ({"kind": "any"}, "any layer"),
        ({"kind": "linear"}, "kind linear"),
        ({"kind": ["linear", "batch_norm"]}, "kind linear or batch_norm"),
        ({"first": True, "kind": "convolution"}, "first convolution"),
        ({"first": True, "kind": ["convolution", "linear"]}, "first convolution or linear"),
        ({"last": True}, "last layer"),
        ({"first": True, "last": True}, "first and last layer"),
        ({"first": False, "kind": "linear"}, "kind linear, not first"),
        ({"class": "Conv2d", "name": ["a.*", "b"]}, "class Conv2d, name a.* or b"),
        ({"depth": [0, 0.43]}, "depth 0 to 0.43"),
    ],
)
def test_describe(selector: dict[str, object], words: str) -> None:
    assert describe(LayerEntry.model_validate({"rule": "flat", **selector})) == words


def test_names_and_classes_that_no_layer_has_are_told() -> None:
    rules = ruleset(
        {"class": "Conv2D"}, {"name": ["features.*", "classifer.*"]}, {"class": ["Linear", "X"]}, {"first": True}
    )
    found = unmatched(rules, ["features.0", "classifier.1"], ["Conv2d", "Linear"])
    assert found == [
        "layers[0]: no layer is a 'Conv2D'; did you mean 'Conv2d'?",
        "layers[1]: no layer has the name 'classifer.*'; did you mean 'classifier.1'?",
        "layers[2]: no layer is a 'X'",
    ]
    assert unmatched(ruleset({"class": "Conv2d", "name": "f*"}, {"kind": "linear"}), ["f"], ["Conv2d"]) == []
