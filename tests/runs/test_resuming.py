"""A second run over the same directory does what is left to do, and nothing twice."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, make_picture: Make) -> Path:
    for seed in range(3):
        make_picture(tmp_path / f"in/{seed}.png", seed)
    return tmp_path


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/manifest.jsonl").read_text().splitlines()]


def explain(lrp, folder: Path, *more: object):
    return lrp.explain(folder / "in", "-o", folder / "out", "--json", *more)


def skipped(result) -> list[str]:
    return [Path(record["image"]).name for record in result.records if record.get("skipped")]


def test_nothing_is_done_twice(lrp, folder: Path) -> None:
    first = explain(lrp, folder, "-t", "top:2")
    times = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir() if path.suffix != ".lock"}
    second = explain(lrp, folder, "-t", "top:2")
    assert second.code == 0
    assert [record | {"skipped": True} for record in first.records] == second.records
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert "0 pictures explained, 3 skipped" in second.err


def test_from_another_working_directory_as_well(lrp, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explain(lrp, folder)
    monkeypatch.chdir(folder)
    assert len(skipped(lrp.explain("in", "-o", "out", "--json"))) == 3


def test_force_does_everything_again(lrp, folder: Path) -> None:
    explain(lrp, folder)
    assert skipped(explain(lrp, folder, "--force")) == []
    assert len(lines(folder)) == 6
    assert lrp("verify", folder / "out").code == 0


def test_a_changed_picture_is_explained_again_and_its_old_outputs_go(lrp, folder: Path, make_picture: Make) -> None:
    first = explain(lrp, folder).records
    for seed in range(30, 60):  # until another class is predicted
        make_picture(folder / "in/1.png", seed)
        second = explain(lrp, folder)
        if second.records[1]["target"] != first[1]["target"]:
            break
    assert skipped(second) == ["0.png", "2.png"]
    assert not Path(first[1]["outputs"]["npy"]).exists()
    assert Path(second.records[1]["outputs"]["npy"]).exists()
    assert lrp("verify", folder / "out").code == 0


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_damaged_outputs_are_made_again(lrp, folder: Path, damage: str) -> None:
    first = explain(lrp, folder).records
    victim = Path(first[2]["outputs"]["overlay"])
    before = victim.read_bytes()
    if damage == "delete":
        victim.unlink()
    else:
        victim.write_bytes(before[:100] if damage == "truncate" else before[:-9] + b"#" + before[-8:])
    assert lrp("verify", folder / "out").code == 1
    assert skipped(explain(lrp, folder)) == ["0.png", "1.png"]
    assert len(victim.read_bytes()) > 100
    assert lrp("verify", folder / "out").code == 0


@pytest.mark.parametrize(
    "change",
    [
        ("-c", "epsilon-plus"),
        ("-t", "3"),
        ("--seed", "one"),
        ("--fit", "pad"),
        ("--crop", "48"),
        ("--full",),
        ("--weights", "random"),
    ],
)
def test_other_settings_are_other_results(lrp, folder: Path, change: tuple[str, ...]) -> None:
    explain(lrp, folder)
    result = explain(lrp, folder, *change)
    assert result.code == 0
    assert skipped(result) == []
    assert len(skipped(explain(lrp, folder, *change))) == 3
    assert lrp("verify", folder / "out").code == 0


def test_pictures_of_one_name_do_not_replace_each_other(lrp, tmp_path: Path, make_picture: Make) -> None:
    pictures = [make_picture(tmp_path / part / "x.png", seed) for seed, part in enumerate("ab")]
    out = tmp_path / "out"
    for picture in pictures:
        assert lrp.explain(picture, "-o", out, "--json").code == 0
    both = lrp.explain(*pictures, "-o", out, "--json")
    assert skipped(both) == ["x.png", "x.png"]
    assert len(list(out.rglob("*.npy"))) == 2
    assert "2 results recorded" in lrp("verify", out).err
    assert lrp("verify", out).code == 0


def test_pictures_of_one_relative_path_do_not_replace_each_other(
    lrp, tmp_path: Path, make_picture: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, part in enumerate("ab"):
        make_picture(tmp_path / part / "x.png", seed)
        monkeypatch.chdir(tmp_path / part)
        assert lrp.explain("x.png", "-o", tmp_path / "out", "--json").code == 0
    assert len(list((tmp_path / "out").rglob("*.npy"))) == 2
    assert lrp("verify", tmp_path / "out").code == 0


NETWORK = """
import torch
def build():
    torch.manual_seed({seed})
    layers = torch.nn.Conv2d(3, 4, 8, 8), torch.nn.{activation}(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    return torch.nn.Sequential(*layers, torch.nn.Linear(4, 3))
"""


def test_an_own_network_that_was_changed_is_another_one(lrp, folder: Path) -> None:
    file, weights = folder / "net.py", folder / "weights.pt"
    torch.save(torch.rand(3), weights)

    def explain_by(code: str) -> list[str]:
        file.write_text(code)
        result = lrp("explain", folder / "in", "-m", f"{file}:build", "-o", folder / "out", "--json")
        assert result.code == 0, result.err
        return skipped(result)

    assert explain_by(NETWORK.format(seed=0, activation="ReLU")) == []
    assert len(explain_by(NETWORK.format(seed=0, activation="ReLU"))) == 3
    assert explain_by(NETWORK.format(seed=1, activation="ReLU")) == []
    assert explain_by(NETWORK.format(seed=1, activation="Tanh")) == []  # the weights are the same
    bias = f"net = build_()\n    net[4].bias.data = torch.load({str(weights)!r}, weights_only=True)\n    return net\n"
    from_file = NETWORK.format(seed=1, activation="Tanh").replace("build", "build_") + f"def build():\n    {bias}"
    assert explain_by(from_file) == []
    assert len(explain_by(from_file)) == 3
    torch.save(torch.rand(3), weights)
    assert explain_by(from_file) == []  # the code is the same


def test_so_is_one_whose_neighbours_were_changed(lrp, folder: Path) -> None:
    """What the file imports from its own directory; not what lies there, or is imported from elsewhere."""
    (folder / "net.py").write_text("from parts.layers import build\n")
    (folder / "parts").mkdir()
    (folder / "parts/__init__.py").touch()
    layers, unused = folder / "parts/layers.py", folder / "unused.py"

    def explain_by(activation: str) -> list[str]:
        layers.write_text(NETWORK.format(seed=0, activation=activation))
        command = f"LRP explain {folder}/in -m {folder}/net.py:build -o {folder}/out --json"
        result = lrp.shell(command)
        assert result.returncode == 0, result.stderr
        return [line for line in result.stderr.splitlines() if "3 skipped" in line]

    assert not explain_by("ReLU")
    unused.write_text("import torch\n")
    assert explain_by("ReLU")
    assert not explain_by("Tanh")
    assert explain_by("Tanh")


def test_other_kinds_of_outputs_join_those_that_are_there(lrp, folder: Path) -> None:
    assert skipped(explain(lrp, folder, "--save", "npy,overlay")) == []
    assert len(skipped(explain(lrp, folder, "--save", "npy"))) == 3
    assert skipped(explain(lrp, folder, "--save", "heatmap")) == []
    for wanted in ("npy,overlay", "heatmap,npy", "overlay"):
        again = explain(lrp, folder, "--save", wanted)
        assert len(skipped(again)) == 3
        assert all([*record["outputs"]] == wanted.split(",") for record in again.records)
    assert len(list((folder / "out").glob("*.npy"))) == len(list((folder / "out").glob("*.overlay.png"))) == 3
    assert lrp("verify", folder / "out").code == 0


def test_other_kinds_of_outputs_go_with_what_they_showed(lrp, folder: Path) -> None:
    explain(lrp, folder, "--save", "npy,overlay")
    explain(lrp, folder, "--save", "heatmap", "-c", "epsilon-plus")
    assert not list((folder / "out").glob("*.npy"))
    assert len(list((folder / "out").glob("*.heatmap.png"))) == 3
    assert lrp("verify", folder / "out").code == 0


def test_relevance_stays_when_it_is_drawn_otherwise(lrp, folder: Path) -> None:
    explain(lrp, folder, "--save", "npy,heatmap")
    before = {path: path.read_bytes() for path in (folder / "out").glob("*.npy")}
    assert skipped(explain(lrp, folder, "--save", "overlay", "--full")) == []
    assert before == {path: path.read_bytes() for path in (folder / "out").glob("*.npy")}
    assert len(before) == 3
    assert not list((folder / "out").glob("*.heatmap.png"))
    assert len(skipped(explain(lrp, folder, "--save", "npy,overlay", "--full"))) == 3
    assert lrp("verify", folder / "out").code == 0


def test_a_checkpoint_is_known_by_its_contents(lrp, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "weights.pt"
    net = torch.nn.Linear(3, 4)
    (folder / "net.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), "
        "torch.nn.Linear(3, 4))\n"
    )
    torch.save({"2.weight": net.weight, "2.bias": net.bias}, file)
    monkeypatch.chdir(folder)
    common = "explain", folder / "in", "-m", "net.py:build", "-o", folder / "out", "--json"
    assert skipped(lrp(*common, "-w", file)) == []
    assert len(skipped(lrp(*common, "-w", "weights.pt"))) == 3
    torch.save({"2.weight": net.weight, "2.bias": net.bias + 1}, file)
    assert skipped(lrp(*common, "-w", "weights.pt")) == []


def test_batch_size_and_order_are_no_settings(lrp, folder: Path) -> None:
    explain(lrp, folder)
    assert len(skipped(explain(lrp, folder, "-b", "1"))) == 3


def test_new_pictures_join(lrp, folder: Path, make_picture: Make) -> None:
    explain(lrp, folder)
    make_picture(folder / "in/3.png", 3)
    assert skipped(explain(lrp, folder)) == ["0.png", "1.png", "2.png"]


def test_failures_are_recorded_once_and_tried_again(lrp, folder: Path, make_picture: Make) -> None:
    (folder / "in/1.png").write_bytes(b"broken")
    for _ in range(2):
        result = explain(lrp, folder)
        assert result.code == 1
        failed = [line for line in lines(folder) if line["status"] == "failed"]
        assert [(Path(line["image"]).name, "not a picture" in line["reason"]) for line in failed] == [("1.png", True)]
    make_picture(folder / "in/1.png", 1)
    assert explain(lrp, folder).code == 0
    verified = lrp("verify", folder / "out")
    assert "3 results recorded: all intact" in verified.err


@pytest.mark.parametrize("cut", [1, 200, 3000])
def test_a_torn_line_is_dropped_and_its_picture_explained_again(lrp, folder: Path, cut: int) -> None:
    explain(lrp, folder, "-t", "top:2")
    manifest = folder / "out/manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-cut])
    assert skipped(explain(lrp, folder, "-t", "top:2")) == ["0.png"] * 2 + ["1.png"] * 2
    assert all(line["status"] == "done" for line in lines(folder))
    assert lrp("verify", folder / "out").code == 0


def test_leftovers_of_a_killed_run_are_removed(lrp, folder: Path) -> None:
    leftover = folder / "out/sub/.lrp-abc.part"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    explain(lrp, folder)
    assert not leftover.exists()


def test_outputs_are_no_pictures_of_the_next_run(lrp, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for _ in range(2):
        assert len(lrp.explain(".", "-r", "--json").records) == 3
    for _ in range(2):
        assert len(lrp.explain("in", "-o", "in", "--json").records) == 3


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(lrp, folder: Path, make_picture: Make) -> None:
    new = explain(lrp, folder, "--dry-run")
    assert [record["action"] for record in new.records] == ["explain"] * 3
    assert not (folder / "out").exists()
    explain(lrp, folder)
    before = (folder / "out/manifest.jsonl").read_bytes()
    make_picture(folder / "in/3.png", 3)
    (folder / "in/4.png").write_bytes(b"broken")
    later = explain(lrp, folder, "--dry-run")
    assert [record["action"] for record in later.records] == ["skip"] * 3 + ["explain"]
    assert "4.png: not a picture" in later.err
    assert later.code == 1
    assert (folder / "out/manifest.jsonl").read_bytes() == before


def test_the_manifest_says_how_to_do_it_again(lrp, folder: Path) -> None:
    explain(lrp, folder)
    line = lines(folder)[0]
    assert line["rules"]["layers"]
    assert len(line["rules_sha256"]) == 64
    assert line["preprocessing"]["crop"] == 64
    assert (line["device"], line["dtype"]) == ("cpu", "float32")
    assert line["seconds"] > 0
    npy = line["files"]["npy"]
    assert npy["bytes"] == (folder / "out" / npy["path"]).stat().st_size
    relevance = np.load(folder / "out" / npy["path"])
    assert relevance.sum(dtype=np.float64) == pytest.approx(line["relevance_sum"], rel=1e-4, abs=1e-5)
