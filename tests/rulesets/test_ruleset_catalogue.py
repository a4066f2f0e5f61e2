"""Finding and reading configs, and one clear line for everything that is wrong with one."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrp_cli.errors import ConfigError, ExitCode
from lrp_cli.rulesets import Layer, Ruleset, ZBoxSpec, catalogue, load, presets, select, shadowed

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "attnlrp",
    "attnlrp-gamma",
    "cp-lrp",
    "cp-lrp-gamma",
    "deep-taylor",
    "epsilon",
    "epsilon-alpha2-beta1",
    "epsilon-alpha2-beta1-flat",
    "epsilon-gamma-box",
    "epsilon-plus",
    "epsilon-plus-flat",
    "excitation-backprop",
    "lrp-0",
    "overview",
]
GOOD = """\
description: a test
layers:
  - first: true
    kind: convolution
    rule: flat
  - kind: [convolution, batch_norm]
    rule:
      type: gamma
      gamma: 0.1
  - rule: epsilon
attention: attnlrp
"""

Complain = Callable[[str | bytes], str]


@pytest.fixture
def complaint(tmp_path: Path) -> Complain:
    """Return the message for a faulty config, from the line number on, after checking that it is one line."""

    def read(text: str | bytes) -> str:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(ConfigError) as caught:
            load(path)
        message = str(caught.value)
        assert caught.value.exit_code == ExitCode.INVALID_CONFIG
        assert len(message.splitlines()) == 1
        assert message.isprintable()
        assert message.startswith(f"{path}:")
        return message.removeprefix(f"{path}:")

    return read


# --- presets


def test_the_presets_are_these() -> None:
    assert [preset.name for preset in presets()] == NAMES


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
class TestEveryPreset:
    def test_is_documented(self, preset: catalogue.NamedRuleset) -> None:
        assert preset.ruleset.description
        assert "\n" not in preset.ruleset.description
        assert len(preset.ruleset.description) <= 100
        assert any(mark in preset.ruleset.source for mark in ("doi:10.", "arXiv:"))
        assert preset.text.startswith("# ")
        assert preset.text.isascii()

    def test_has_a_rule_for_every_layer(self, preset: catalogue.NamedRuleset) -> None:
        for kind in ("convolution", "linear", "batch_norm"):
            for count in (1, 2, 7):
                for index in range(count):
                    select(preset.ruleset, Layer("x", "X", kind, index, count))

    def test_keeps_rules_for_pixels_and_batch_norms_where_they_belong(self, preset: catalogue.NamedRuleset) -> None:
        for kind in ("convolution", "linear", "batch_norm"):
            rules = [select(preset.ruleset, Layer("x", "X", kind, index, 9)).rule for index in range(9)]
            assert not any(rule.type in {"zbox", "flat"} for rule in rules[1:])
            if kind == "batch_norm":
                assert {rule.type for rule in rules} <= {"epsilon", "lrp-0"}

    def test_has_no_dead_entries(self, preset: catalogue.NamedRuleset) -> None:
        assert shadowed(preset.ruleset) == []

    def test_round_trips_through_its_resolved_form(self, preset: catalogue.NamedRuleset) -> None:
        resolved = json.loads(json.dumps(preset.resolved()))
        assert Ruleset.model_validate(resolved) == preset.ruleset
        without_bias = {"flat", "wsquare", "zbox"}
        assert all(
            ("bias" in layer["rule"]) == (layer["rule"]["type"] not in without_bias) for layer in resolved["layers"]
        )

    def test_is_found_by_name_and_by_path(self, preset: catalogue.NamedRuleset) -> None:
        assert load(preset.name) == load(preset.path) == load(str(preset.path)) == preset


def rules_of(name: str, kinds: list[str]) -> list[str]:
    """The names of the rules of a network given by its kinds of layers."""
    ruleset = load(name).ruleset
    return [select(ruleset, Layer(str(i), "X", kind, i, len(kinds))).rule.type for i, kind in enumerate(kinds)]


VGG16 = ["convolution"] * 13 + ["linear"] * 3


@pytest.mark.parametrize(
    "name, first, convolution, linear",
    [
        ("lrp-0", "lrp-0", "lrp-0", "lrp-0"),
        ("epsilon", "epsilon", "epsilon", "epsilon"),
        ("epsilon-plus", "zplus", "zplus", "epsilon"),
        ("epsilon-plus-flat", "flat", "zplus", "epsilon"),
        ("epsilon-gamma-box", "zbox", "gamma", "epsilon"),
        ("epsilon-alpha2-beta1", "alpha-beta", "alpha-beta", "epsilon"),
        ("epsilon-alpha2-beta1-flat", "flat", "alpha-beta", "epsilon"),
        ("deep-taylor", "zbox", "zplus", "zplus"),
        ("excitation-backprop", "zplus", "zplus", "zplus"),
    ],
)
def test_presets_on_vgg16(name: str, first: str, convolution: str, linear: str) -> None:
    assert rules_of(name, VGG16) == [first] + [convolution] * 12 + [linear] * 3


def test_overview_has_the_split_of_the_authors_vgg16() -> None:
    # 16 layers: conv1_1 to conv3_3 below, conv4_1 to conv5_3 in the middle, the three linear layers on top.
    assert rules_of("overview", VGG16) == ["zbox"] + ["gamma"] * 6 + ["epsilon"] * 6 + ["lrp-0"] * 3
    middle = select(load("overview").ruleset, Layer("x", "X", "convolution", 9, 16)).rule
    assert middle.model_dump() == {"type": "epsilon", "epsilon": 0.25, "relative": True, "bias": "use"}


@pytest.mark.parametrize("name", ["deep-taylor", "excitation-backprop"])
def test_presets_that_leave_biases_out(name: str) -> None:
    rules = [entry.rule.model_dump() for entry in load(name).ruleset.layers]
    assert {rule["bias"] for rule in rules if rule["type"] != "zbox"} == {"ignore"}


def test_preset_parameters() -> None:
    assert [entry.rule.model_dump().get("gamma") for entry in load("epsilon-gamma-box").ruleset.layers][1] == 0.25
    alpha_beta = load("epsilon-alpha2-beta1").ruleset.layers[0].rule.model_dump()
    assert (alpha_beta["alpha"], alpha_beta["beta"]) == (2, 1)
    assert load("epsilon-gamma-box").ruleset.layers[0].rule == ZBoxSpec()


# --- finding


def test_a_preset_wins_over_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("epsilon").write_text("not a config")
    Path("mine").write_text(GOOD)
    assert load("epsilon").ruleset.layers[0].rule.type == "epsilon"
    assert load("mine").text == GOOD
    with pytest.raises(ConfigError, match="single value"):
        load("./epsilon")


@pytest.mark.parametrize("name", ["epsilno", "Epsilon", "EPSILON"])
def test_a_name_that_is_nearly_one(name: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'epsilon'\?.*lrp configs"):
        load(name)


@pytest.mark.parametrize("name", ["", "nothing of the kind", "x" * 5000, "a\0b", "a\nb", ".."])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert "lrp configs" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "path, reason",
    [
        ("nowhere.yaml", "No such file"),
        ("no/where", "No such file"),
        ("a\0b.yaml", "null"),
        ("a\nb.yaml", "No such file"),
        (f"{'x' * 5000}.yml", "too long"),
        (Path("epsilon"), "No such file"),  # a Path is never the name of a preset
    ],
)
def test_a_file_that_cannot_be_read(path: str | Path, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot read the config .*{reason}") as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config .*: "):
        load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is readable to root")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text(GOOD)
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(path)


def test_presets_inside_the_package_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "only.yaml").write_text(GOOD)
    monkeypatch.setattr(catalogue.resources, "files", lambda package: tmp_path)
    assert [preset.name for preset in presets()] == ["only"]
    monkeypatch.setattr(catalogue.resources, "files", lambda package: tmp_path / "elsewhere")
    assert [preset.name for preset in presets()] == NAMES


# --- reading


def test_text_is_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(GOOD.replace("\n", "\r\n").encode())
    assert load(path).text == GOOD.replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())  # a byte-order mark, as editors on Windows leave it
    assert load(path).text == GOOD


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "1E-3", "0.001", ".1e-2", "+1e-3", "10e-4"])
def test_every_way_to_write_a_number(number: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"layers: [rule: {{type: epsilon, epsilon: {number}}}]")
    assert load(path).ruleset.layers[0].rule.model_dump()["epsilon"] == 0.001


def test_digest_is_that_of_the_canonical_resolved_form(tmp_path: Path) -> None:
    def named(text: str) -> catalogue.NamedRuleset:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load(path)

    short = named("layers: [rule: epsilon]")
    expected = json.dumps(short.resolved(), sort_keys=True, separators=(",", ":"))
    assert short.digest == hashlib.sha256(expected.encode()).hexdigest()
    assert short.digest == named("# a comment\nlayers:\n- rule: {type: epsilon, epsilon: 0.000001}\n").digest
    assert short.digest != named("layers: [rule: {type: epsilon, epsilon: 0.00001}]").digest
    assert short.digest != named("layers: [rule: epsilon]\nattention: attnlrp").digest


@pytest.mark.parametrize(
    "old, new, line, words",
    [
        ("description:", "descripton:", 1, ["descripton: unknown key", "did you mean 'description'?"]),
        ("attention: attnlrp", "attention: attnlpr", 11, ["attention: unknown value 'attnlpr'", "'attnlrp'?"]),
        ("layers:", "layer:", 2, ["layer: unknown key", "did you mean 'layers'?"]),
        ("first: true", "frist: true", 3, ["layers[0].frist: unknown key", "did you mean 'first'?"]),
        ("first: true", "first: 1", 3, ["layers[0].first: must be true or false, not 1"]),
        ("kind: convolution\n", "kind: convolutoin\n", 4, ["layers[0].kind: unknown value", "'convolution'?"]),
        ("batch_norm", "batchnorm", 6, ["layers[1].kind[1]: unknown value 'batchnorm'", "'batch_norm'?"]),
        ("rule: flat", "rule: flta", 5, ["layers[0].rule: unknown rule 'flta'", "did you mean 'flat'?"]),
        ("rule: flat", "rule: Flat", 5, ["unknown rule 'Flat'", "did you mean 'flat'?"]),
        ("rule: flat", "rule: zz", 5, ["unknown rule 'zz'", "lrp-0, epsilon, gamma"]),
        ("rule: flat", "rule: 0", 5, ["layers[0].rule: must be the name of a rule", "not 0"]),
        ("rule: flat", "rules: flat", 5, ["layers[0].rules: unknown key", "did you mean 'rule'?", "(and 1 more)"]),
        ("type: gamma", "type: gama", 7, ["layers[1].rule: unknown rule 'gama'", "did you mean 'gamma'?"]),
        ("type: gamma\n      ", "", 7, ["layers[1].rule: the key 'type' is missing"]),
        ("gamma: 0.1", "gama: 0.1", 9, ["layers[1].rule.gama: unknown key", "did you mean 'gamma'?"]),
        ("gamma: 0.1", "gamma: -1", 9, ["layers[1].rule.gamma: must be at least 0, not -1"]),
        ("gamma: 0.1", "gamma: .nan", 9, ["layers[1].rule.gamma: must be a finite number, not nan"]),
        ("gamma: 0.1", "gamma: 1e999", 9, ["layers[1].rule.gamma: must be a finite number, not inf"]),
        ("gamma: 0.1", "gamma: much", 9, ["layers[1].rule.gamma: must be a number, not 'much'"]),
        ("gamma: 0.1", "bias: ignored", 9, ["layers[1].rule.bias: unknown value", "did you mean 'ignore'?"]),
        ("gamma: 0.1", "bias: no", 9, ["layers[1].rule.bias: must be one of use, ignore, not false"]),
        ("  - rule: epsilon", "  - kind: linear", 10, ["layers[2]: the key 'rule' is missing"]),
        ("  - rule: epsilon", "  - epsilon", 10, ["layers[2]: must be a mapping, not 'epsilon'"]),
        ("  - rule: epsilon", "  - {rule: epsilon, depth: [1, 0]}", 10, ["layers[2].depth: ", "0 <= from <= to <= 1"]),
        ("  - rule: epsilon", "  - {rule: epsilon, depth: [0]}", 10, ["layers[2].depth: ", "two numbers"]),
        ("  - rule: epsilon", "  - {rule: epsilon, class: nn.Conv2d}", 10, ["'nn.Conv2d' is not a class name"]),
        ("  - rule: epsilon", "  - {rule: epsilon, class_: Conv2d}", 10, ["class_: unknown key", "'class'?"]),
        ("a test", "2020-01-01", 1, ["'2020-01-01' in quotes"]),
        ("a test", "12", 1, ["description: must be text, not 12"]),
        ("a test", '"one\\ntwo"', 1, ["description: must be one line"]),
        ("a test", '"\\ud800"', 1, ["stands for no character"]),
        ("a test", '"\\UFFFFFFFF"', 1, ["stands for no character"]),
        ("a test", "0x_", 1, ["not a number"]),
        ("a test", "9" * 5000, 1, ["not a number"]),
        ("attention: attnlrp", "layers: []", 11, ["the key 'layers' is given twice", "line 2"]),
        ("gamma: 0.1", "type: gamma", 9, ["the key 'type' is given twice", "line 8"]),
        ("first: true", "1: true", 3, ["keys are words", "'1'"]),
        ("first: true", "yes: true", 3, ["keys are words", "'yes'"]),
        ("first: true", "[a, b]: true", 3, ["keys are words", "a list"]),
        ("first: true", "? {a: b}\n    : true", 3, ["keys are words", "a mapping"]),
        ("first: true", "<<: {first: true}", 3, ["'<<'"]),
        ("attention:", '"a\\nb\\e[31m":', 11, ["unknown key"]),
        ("rule: flat", "rule: &x flat", 5, ["&x", "anchors and aliases are not allowed"]),
        ("rule: flat", "rule: *x", 5, ["*x", "anchors and aliases are not allowed"]),
        ("rule: flat", "rule: !!python/object/apply:os.system [exit]", 5, ["python/object/apply:os.system", "tag"]),
        ("rule: flat", "rule: !!python/name:os.system", 5, ["tag", "is not allowed"]),
        ("rule: flat", "rule: !!str flat", 5, ["tag", "is not allowed"]),
        ("rule: flat", "rule: !!bool q", 5, ["tag", "is not allowed"]),
    ],
)
def test_faults(old: str, new: str, line: int, words: list[str], complaint: Complain) -> None:
    assert old in GOOD
    message = complaint(GOOD.replace(old, new, 1))
    assert message.startswith(f"{line}: "), message
    for word in words:
        assert word in message


@pytest.mark.parametrize("alpha, beta, sum_", [(3, 1, 2), (2, 0, 2), (1, 1, 0)])
def test_alpha_minus_beta(alpha: float, beta: float, sum_: float, complaint: Complain) -> None:
    rule = f"{{type: alpha-beta, alpha: {alpha}, beta: {beta}}}"
    message = complaint(f"layers:\n  - kind: linear\n    rule: {rule}\n")
    assert message.startswith("3: layers[0].rule: alpha - beta must be 1")
    assert message.endswith(f"{alpha} - {beta} = {sum_}")


@pytest.mark.parametrize(
    ("second", "is_good"),
    [("low: 0, high: 1", True), ("low: 0, high: 2", False), ("high: [1, 1, 1]", True), ("high: [1, 1, 2]", False)],
)
def test_all_boxes_are_one(second: str, is_good: bool, complaint: Complain) -> None:
    rules = "{type: zbox, low: 0, high: 1}", f"{{type: zbox, {second}}}"
    text = f"layers:\n  - name: a*\n    rule: {rules[0]}\n  - first: true\n    rule: {rules[1]}\n  - rule: epsilon\n"
    if is_good:
        assert Ruleset.model_validate(yaml.safe_load(text))
    else:
        message = complaint(text)
        assert message.startswith("1: layers: zbox entries give different low or high")


def test_a_key_named_like_its_rule_is_not_mistaken_for_it(complaint: Complain) -> None:
    # In pydantic's location "epsilon" stands twice, for the type of the rule and for its parameter.
    message = complaint("layers:\n  - rule:\n      epsilon: -1\n      type: epsilon\n      bias: no\n")
    assert message.startswith("3: layers[0].rule.epsilon: must be greater than 0, not -1 (and 1 more)")
    message = complaint("layers:\n  - rule:\n      epsilon: 1\n      type: epsilon\n      bias: no\n")
    assert message.startswith("5: layers[0].rule.bias: ")


def test_the_first_fault_of_several_in_order_of_the_file(complaint: Complain) -> None:
    message = complaint("attention: x\nlayers:\n  - rule: flta\n    kind: lin\n  - rule: [1]\nsorce: y\n")
    assert message.startswith("1: attention: ")
    assert message.endswith("(and 4 more)")


@pytest.mark.parametrize(
    "text, start, words",
    [
        ("layers:\n  - rule: [flat\n", "3:1: not valid YAML: ", ""),
        ("layers:\n  - rule: a: b\n", "2:12: not valid YAML: ", "mapping values are not allowed"),
        ("\tlayers: 1", "1:1: not valid YAML: ", "\\t"),
        ("a: 1\n---\nb: 2\n", "2:1: not valid YAML: ", "document"),
        ("a: 1\nb: \x07\n", "2: not valid YAML: ", "\\x07"),
        ("", " a config is a mapping", "nothing"),
        ("# only a comment\n", " a config is a mapping", "nothing"),
        ("\n- rule: flat\n", "2: a config is a mapping", "a list"),
        ("epsilon", "1: a config is a mapping", "a single value"),
        ("null", "1: a config is a mapping", "a single value"),
        ("{}", "1: the key 'layers' is missing", ""),
        ("layers: []", "1: layers: must not be empty", ""),
        ("layers: 3", "1: layers: must be a list, not 3", ""),
        ("layers: {rule: flat}", "1: layers: must be a list, not a mapping", ""),
        (b"layers:\n- rule: \xff\n", "2: not a text in UTF-8", ""),
        ("layers: [rule: flat]".encode("utf-16"), "1: not a text in UTF-8", ""),
        (b"\x89PNG\r\n\x1a\n", "1: not a text in UTF-8", ""),
        ("[" * 5000, " not a config: it is nested too deeply", ""),
        ("layers:\n  " + "- " * 5000, " not a config: it is nested too deeply", ""),
        ("layers: " + "{a: " * 5000, " not a config: it is nested too deeply", ""),
        ("# " + "x" * catalogue.MAX_BYTES, " not a config: it has more than 64 KiB", ""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_texts_that_are_no_configs(text: str | bytes, start: str, words: str, complaint: Complain) -> None:
    message = complaint(text)
    assert message.startswith(start), message
    assert words in message


def test_an_alias_bomb_does_not_go_off(complaint: Complain) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    started = time.perf_counter()
    message = complaint(bomb)
    assert time.perf_counter() - started < 1
    assert message.startswith("1: &a0: anchors and aliases are not allowed")


def test_a_tag_runs_nothing(tmp_path: Path, complaint: Complain) -> None:
    marker = tmp_path / "ran"
    complaint(f"layers: !!python/object/apply:os.system ['touch {marker}']\n")
    assert not marker.exists()


def test_an_endless_file_is_not_read_to_its_end() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("needs /dev/zero")
    with pytest.raises(ConfigError, match="more than"):
        load(Path("/dev/zero"))


TEXTS = [GOOD, *(preset.text for preset in presets())]
MARKS = ["\n", "\t", "\0", "- ", ": ", "<<: ", "&a ", "*a", "!!int ", "---\n", "...\n", *"-{}[]!|>'\"%@`#,?"]
WORDS = ["null", "true", "1e-6", ".nan", "-1", "2020-01-01", "type", "rule", "kind", "layers", "epsilon"]
CHARACTERS = ['"\\ud800"', "\ud7ff", "\u2028", "\x85", "\ufeff"]
SNIPPETS = st.sampled_from([*MARKS, *WORDS, *CHARACTERS])


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A config with a few cuts, copies and insertions."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 20)))
        text = text[:start] + draw(SNIPPETS | st.text(max_size=5) | st.just(text[start:end] * 2)) + text[end:]
    return text


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutated())
def test_a_mutated_config_loads_or_fails_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mutated.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        found = load(path)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1
        assert str(error).isprintable()
    else:
        assert Ruleset.model_validate(json.loads(json.dumps(found.resolved()))) == found.ruleset
        assert len(found.digest) == 64


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_plain_data_loads_or_fails_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    words = st.sampled_from(
        ["layers", "rule", "type", "kind", "name", "depth", "epsilon", "gamma", "zbox", "low", "high"]
    )
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | words
    values = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
    )
    rule = data.draw(values | st.fixed_dictionaries({"type": words}, optional={"low": values, "high": values}))
    content = {"layers": [{"rule": rule, data.draw(words): data.draw(values)}, {"rule": "flat"}]}
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        load(path)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


def test_this_room_does_without_torch() -> None:
    code = "import sys, lrp_cli.rulesets as room; room.presets(); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
