"""``lrp explain`` as a user meets it: exit codes, what it prints, what it writes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CAT = ROOT / "sample_images/cat.jpg"
COFFEE = ROOT / "sample_images/coffee.png"
FIELDS = (
    "image",
    "model",
    "weights",
    "config",
    "target",
    "label",
    "versus",
    "seed",
    "score",
    "logit",
    "probability",
    "relevance_sum",
    "absorbed_sum",
    "outputs",
)


def test_the_first_command_sees_a_cat_with_balanced_books(lrp, tmp_path: Path) -> None:
    result = lrp("explain", CAT, "--out", tmp_path, "--json")
    assert result.code == 0
    (record,) = result.records
    assert tuple(record) == FIELDS
    assert "cat" in record["label"]
    assert record["model"] == "efficientnet_lite0"
    assert record["score"] == pytest.approx(record["relevance_sum"] + record["absorbed_sum"], rel=1e-3)
    relevance = np.load(record["outputs"]["npy"], allow_pickle=False)
    assert relevance.dtype == np.float32
    assert relevance.shape == (3, 224, 224)
    assert relevance.sum(dtype=np.float64) == pytest.approx(record["relevance_sum"], rel=1e-5)
    with Image.open(record["outputs"]["overlay"]) as overlay:
        assert overlay.size == (224, 224)


def test_standard_output_holds_json_only_and_one_object_for_each_picture_and_target(lrp, tmp_path: Path) -> None:
    result = lrp.explain(CAT, COFFEE, "--out", tmp_path, "--json", "--target", "top:2")
    assert [Path(record["image"]).name for record in result.records] == ["cat.jpg"] * 2 + ["coffee.png"] * 2
    scores = [record["score"] for record in result.records]
    assert scores[0] > scores[1]
    assert scores[2] > scores[3]


def test_without_json_one_line_a_picture_and_with_quiet_none(lrp, tmp_path: Path) -> None:
    loud = lrp.explain(CAT, COFFEE, "--out", tmp_path)
    assert [line.split(":")[0] for line in loud.out.splitlines()] == [str(CAT), str(COFFEE)]
    assert "2 pictures explained" in loud.err
    quiet = lrp.explain(CAT, "--out", tmp_path, "--quiet", "--force")
    assert (quiet.out, quiet.err, quiet.code) == ("", "", 0)
    both = lrp.explain(CAT, "nope.jpg", "--out", tmp_path, "--quiet", "--force", "--json")
    assert len(both.records) == 1
    assert both.err == "lrp: nope.jpg: no such file or directory\n"


def test_a_contrast_says_how_much_of_its_difference_reached_the_pixels(lrp, tmp_path: Path) -> None:
    result = lrp.explain(CAT, "--out", tmp_path, "-t", "1 vs 2", "--seed", "one")
    assert result.code == 0, result.err
    assert re.search(r"score -?[\d.e-]+, .*, relevance of -?[\d.e-]+ reached the pixels", result.out)
    assert "of the score" not in result.out
    assert lrp("verify", tmp_path).code == 0


def test_the_logit_is_recorded_whatever_the_relevance_starts_with(lrp, tmp_path: Path) -> None:
    records = [
        lrp.explain(CAT, "-o", tmp_path / name, "-t", target, "--seed", seed, "--json").records[0]
        for name, target, seed in (("a", "1", "logit"), ("b", "1", "one"), ("c", "1 vs 2", "logit"))
    ]
    plain, one, contrast = records
    assert plain["logit"] == plain["score"] == one["logit"]
    assert one["score"] == pytest.approx(1)
    assert contrast["logit"] == plain["logit"] != contrast["score"]


@pytest.mark.parametrize("kind", ["AssertionError", "RuntimeError"])
def test_what_the_code_of_a_model_raises_is_said_to_be_its_failure(lrp, tmp_path: Path, kind: str) -> None:
    (tmp_path / "net.py").write_text(
        f"""
import torch
class Tired(torch.nn.Module):
    calls = 0
    def forward(self, x):
        Tired.calls += 1
        if Tired.calls > 1:
            raise {kind}("no more\\n  at length")
        return x.mean(dim=(2, 3))
"""
    )
    network = ("-m", f"{tmp_path}/net.py:Tired", "-c", "epsilon")
    result = lrp("explain", CAT, *network, "-o", tmp_path / "out")
    assert result.code == 5
    assert f"lrp: {CAT}: the model fails: {kind}: no more" in result.err.splitlines()
    assert "report it" not in result.err
    assert result.err.count(kind) == 1
    assert "no picture of this run could be explained" in result.err.splitlines()[-1]
    result = lrp("inspect", CAT, *network)
    assert result.code == 5
    assert result.err.splitlines() == [f"lrp: the model fails: {kind}: no more"]


def test_a_row_without_a_target_is_explained_for_those_of_the_run(lrp, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"image,target\n{CAT},281\n{CAT},\n")
    result = lrp.explain(tmp_path / "list.csv", "-t", "5", "-o", tmp_path / "out", "--json")
    assert sorted(record["target"] for record in result.records) == [5, 281]


def test_a_class_that_no_layer_has_is_told(lrp, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("layers:\n  - {class: Conv2D, rule: zplus}\n  - rule: epsilon\n")
    result = lrp("explain", CAT, "-c", config, "--resize", "64", "--crop", "64", "-o", tmp_path / "out")
    assert result.code == 0
    assert "layers[0]: no layer is a 'Conv2D'; did you mean 'Conv2d'?" in result.err
    again = lrp("explain", CAT, "-c", config, "--resize", "64", "--crop", "64", "-o", tmp_path / "out")
    assert "no layer" not in again.err  # nothing was explained


def test_broken_pictures_are_named_and_the_others_done(lrp, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    result = lrp.explain(tmp_path / "text.jpg", CAT, tmp_path / "empty.png", "gone.jpg", "-o", tmp_path / "o", "--json")
    assert result.code == 1
    assert [record["image"] for record in result.records] == [str(CAT)]
    complaints = [line for line in result.err.splitlines() if line.startswith("lrp: ")]
    assert len(complaints) == 3
    for name, reason in (("text.jpg", "not a picture"), ("empty.png", "0 bytes"), ("gone.jpg", "no such file")):
        assert any(name in line and reason in line for line in complaints)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "name pictures or directories"),
        (["gone.jpg"], 2, "no pictures were found"),
        ([CAT, "--save", "overly"], 2, "did you mean 'overlay'"),
        ([CAT, "--save", ","], 2, "names nothing to write"),
        ([CAT, "--target", "tiger cta"], 2, "did you mean 'tiger cat'"),
        ([CAT, "--target", "top:0"], 2, "from 1 to 1000"),
        ([CAT, "--target", "1000"], 2, "out of range"),
        ([CAT, "--mean", "a,b"], 2, "three numbers"),
        ([CAT, "--device", "warp"], 2, "not available"),
        ([CAT, "--random-seed", 2**64], 2, "from -2^63 to 2^64 - 1"),
        ([CAT, "--random-seed", -(2**63) - 1], 2, "from -2^63 to 2^64 - 1"),
        ([CAT, "--fit", "stretch"], 2, "stretch"),
        ([CAT, "--seed", "two"], 2, "two"),
        ([CAT, "--image-stdin"], 2, "goes with no others"),
        ([CAT, "-", "--stdin0"], 2, "once only"),
        ([CAT, "--list", "gone.csv"], 2, "cannot read the list"),
        ([CAT, "--model", "resnet5o"], 3, "did you mean 'resnet50'"),
        ([CAT, "--weights", "gone.safetensors"], 3, "gone.safetensors"),
        ([CAT, "--config", "epsilon-plos"], 4, "did you mean 'epsilon-plus'"),
        ([CAT, "--config", "gone.yaml"], 4, "gone.yaml"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code_and_write_nothing(
    lrp, tmp_path: Path, arguments: list[object], code: int, said: str
) -> None:
    result = lrp("explain", *arguments, "--out", tmp_path / "out")
    assert result.code == code
    assert said in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    if "Usage:" not in result.err:
        assert result.err.splitlines()[-1].startswith("lrp: ")
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(lrp, tmp_path: Path) -> None:
    result = lrp.shell(f"LRP explain --debug {CAT} --config gone.yaml --out {tmp_path}")
    assert "Traceback" in result.stderr
    assert "ConfigError" in result.stderr


@pytest.mark.parametrize(
    ("target", "expected"),
    [("282", [282]), ("tiger cat", [282]), ("TIGER CAT", [282]), ("golden retr", [207])],
)
def test_targets_by_index_and_name(lrp, tmp_path: Path, target: str, expected: list[int]) -> None:
    result = lrp.explain(COFFEE, "--out", tmp_path, "--json", "--target", target)
    assert [record["target"] for record in result.records] == expected


def test_targets_that_coincide_are_explained_once(lrp, tmp_path: Path) -> None:
    best = lrp.explain(CAT, "--out", tmp_path / "a", "--json", "-t", "top:3").records
    again = lrp.explain(
        CAT, "--out", tmp_path / "b", "--json", "-t", "predicted", "-t", "top:3", "-t", best[2]["target"], "-t", 0
    ).records
    assert [record["target"] for record in again] == [*(record["target"] for record in best), 0]
    assert [record["score"] for record in again[:3]] == pytest.approx([record["score"] for record in best])


def test_every_kind_of_output(lrp, tmp_path: Path) -> None:
    (record,) = lrp.explain(CAT, "--out", tmp_path, "--json", "--save", "overlay, heatmap,panel,npy,npy").records
    assert sorted(record["outputs"]) == ["heatmap", "npy", "overlay", "panel"]
    stem = tmp_path / f"cat.jpg.{record['target']}_{re.sub('[^a-z]+', '_', record['label'].lower())}"
    for kind, path in record["outputs"].items():
        assert path == f"{stem}.npy" if kind == "npy" else f"{stem}.{kind}.png"
        assert Path(path).stat().st_size > 100
    for kind in ("overlay", "heatmap"):
        with Image.open(record["outputs"][kind]) as image:
            assert image.size == (64, 64)
    with Image.open(record["outputs"]["panel"]) as image:
        assert image.width > 1000


def test_names_do_not_collide(lrp, tmp_path: Path, make_picture: Callable[..., Path]) -> None:
    paths = [make_picture(tmp_path / name, seed) for seed, name in enumerate(["a/cat.png", "b/cat.png", "a/cat.bmp"])]
    records = lrp.explain(*paths, "--out", tmp_path / "out", "--json", "-t", "0").records
    outputs = [record["outputs"]["npy"] for record in records]
    assert outputs == [
        str(tmp_path / "out" / name)
        for name in ("a/cat.png.0_tench.npy", "b/cat.png.0_tench.npy", "cat.bmp.0_tench.npy")
    ]
    for record in records:
        total = np.load(record["outputs"]["npy"]).sum(dtype=np.float64)
        assert total == pytest.approx(record["relevance_sum"], rel=1e-4)
    assert len({record["relevance_sum"] for record in records}) == 3


def test_the_seed_is_what_the_relevance_sums_to(lrp, tmp_path: Path) -> None:
    by_seed = {
        seed: lrp.explain(COFFEE, "--out", tmp_path / seed, "--json", "--seed", seed).records[0]
        for seed in ("logit", "one", "probability")
    }
    assert by_seed["one"]["score"] == pytest.approx(1)
    for seed, record in by_seed.items():
        assert record["seed"] == seed
        assert record["score"] == pytest.approx(record["relevance_sum"] + record["absorbed_sum"], rel=1e-3)
    ratio = by_seed["logit"]["score"]
    assert by_seed["one"]["relevance_sum"] * ratio == pytest.approx(by_seed["logit"]["relevance_sum"], rel=1e-3)


def test_contrasts_hold_a_class_against_another_or_all_others(lrp, tmp_path: Path) -> None:
    plain = lrp.explain(CAT, "-o", tmp_path, "--json", "-t", "282", "-t", "967").records
    contrast, rest = lrp.explain(
        CAT, "-o", tmp_path, "--json", "-t", "282 vs espresso", "-t", "282 vs rest", "-t", "tiger cat vs 967"
    ).records
    assert (contrast["target"], contrast["versus"]) == (282, 967)
    assert (rest["target"], rest["versus"]) == (282, "rest")
    assert contrast["score"] == pytest.approx(plain[0]["score"] - plain[1]["score"], rel=1e-4)
    assert contrast["outputs"]["npy"] == str(tmp_path / "cat.jpg.282_tiger_cat_vs_967_espresso.npy")
    assert rest["outputs"]["overlay"] == str(tmp_path / "cat.jpg.282_tiger_cat_vs_rest.overlay.png")
    for record in (contrast, rest):
        assert record["score"] == pytest.approx(record["relevance_sum"] + record["absorbed_sum"], rel=1e-3)
    parts = [np.load(record["outputs"]["npy"]) for record in (contrast, *plain)]
    assert parts[0] == pytest.approx(parts[1] - parts[2], abs=1e-3)


def test_a_picture_of_the_class_it_is_held_against_fails_alone(lrp, tmp_path: Path) -> None:
    best = lrp.explain(CAT, "-o", tmp_path / "a", "--json").records[0]["target"]
    result = lrp.explain(CAT, COFFEE, "-o", tmp_path / "b", "--json", "-t", f"predicted vs {best}", "-t", "1")
    assert result.code == 1
    assert f"cat.jpg: class {best} cannot be held against itself" in result.err
    assert [(Path(record["image"]).name, record["versus"]) for record in result.records] == [
        ("cat.jpg", None),
        ("coffee.png", best),
        ("coffee.png", None),
    ]


def test_random_weights_are_seeded(lrp, tmp_path: Path) -> None:
    def score(number: int, out: str) -> float:
        arguments = ("--weights", "random", "--random-seed", number, "-o", tmp_path / out, "--json", "-t", 3)
        return lrp.explain(CAT, *arguments).records[0]["score"]

    assert score(1, "a") == score(1, "b") != score(2, "c")


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_results_do_not_depend_on_the_batch(
    lrp, tmp_path: Path, make_picture: Callable[..., Path], batch_size: int
) -> None:
    for seed in range(4):
        make_picture(tmp_path / f"in/{seed}.png", seed)
    (tmp_path / "in/1b.png").write_bytes(b"broken")
    options = ("--json", "-t", "7", "-c", "epsilon-plus-flat")
    result = lrp.explain(tmp_path / "in", "-o", tmp_path / "out", *options, "-b", batch_size)
    assert [Path(record["image"]).name for record in result.records] == ["0.png", "1.png", "2.png", "3.png"]
    for seed, record in enumerate(result.records):
        alone = lrp.explain(tmp_path / f"in/{seed}.png", "-o", tmp_path / "alone", *options).records[0]
        assert record["score"] == pytest.approx(alone["score"], rel=1e-4)
        ours, reference = (np.load(of["outputs"]["npy"]) for of in (record, alone))
        assert np.linalg.norm(ours - reference) < 1e-3 * np.linalg.norm(reference)


def test_json_survives_any_name(lrp, tmp_path: Path, make_picture: Callable[..., Path]) -> None:
    name = 'a "quoted"\nnew line\t\x1b[31m.png'
    make_picture(tmp_path / name)
    result = lrp.explain(tmp_path / name, "-o", tmp_path / "out", "--json")
    assert result.records[0]["image"] == str(tmp_path / name)
    readable = lrp.explain(tmp_path / name, "-o", tmp_path / "out", "--force")
    assert len(readable.out.splitlines()) == 1
    assert "\x1b" not in readable.out


def test_manifest_lines_hold_what_json_printed(lrp, tmp_path: Path) -> None:
    result = lrp.explain(CAT, "-o", tmp_path, "--json", "-t", "top:2")
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [{field: line[field] for field in FIELDS} for line in lines] == result.records
    assert all(line["versions"].keys() == {"lrp", "torch", "torchvision"} for line in lines)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_torch_takes_these_random_seeds(seed: int) -> None:
    import torch

    from lrp_cli.cli.parsing import check_random_seed

    check_random_seed(seed)
    torch.Generator().manual_seed(seed)
