"""``lrp verify`` and ``lrp_cli.load_run``."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lrp_cli
from lrp_cli.errors import LrpError, UsageError
from lrp_cli.runs.verify import BALANCE, _balances


@pytest.fixture(scope="module")
def finished(lrp, tmp_path_factory: pytest.TempPathFactory, make_picture: Callable[..., Path]) -> Path:
    base = tmp_path_factory.mktemp("finished")
    for seed in range(2):
        make_picture(base / f"in/{seed}.png", seed)
    (base / "in/2.png").write_bytes(b"broken")
    assert lrp.explain(base / "in", "-o", base / "out", "-t", "top:2", "-t", "1 vs 2").code == 1
    return base / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def edit(out: Path, number: int, **changes: object) -> None:
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    lines[number].update(changes)
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def problems(lrp, out: Path) -> list[tuple[str, str]]:
    result = lrp("verify", out, "--json")
    assert result.code == (1 if result.out else 0)
    return [(record["problem"], record["where"]) for record in result.records]


def test_books_of_a_contrast_are_held_against_more_than_its_score() -> None:
    numbers = 3e-8, 2e-6, -2e-6
    assert _balances(numbers, BALANCE, is_contrast=True)
    assert not _balances(numbers, BALANCE)
    assert not _balances((1e-2, 2e-6, -2e-6), BALANCE, is_contrast=True)


def first(out: Path, kind: str) -> Path:
    return sorted(out.glob(f"*{kind}"))[0]


def test_a_finished_run_is_intact_even_where_it_was_moved(lrp, out: Path) -> None:
    assert problems(lrp, out) == []
    result = lrp("verify", out)
    assert "6 results recorded, 1 failed when they were tried: all intact" in result.err
    assert lrp("verify", out, "-q").err == ""


def test_a_missing_a_damaged_and_an_extra_file(lrp, out: Path) -> None:
    gone, changed = sorted(out.glob("*.npy"))[:2]
    gone.unlink()
    changed.write_bytes(changed.read_bytes()[:-4] + b"abcd")
    (out / "notes.txt").touch()
    assert sorted(problems(lrp, out)) == sorted(
        [("missing", gone.name), ("damaged", changed.name), ("extra", "notes.txt")]
    )


def test_books_that_do_not_balance(lrp, out: Path) -> None:
    edit(out, 0, absorbed_sum=1234.5)
    edit(out, 1, relevance_sum=-7.0, score=-7.0, absorbed_sum=0.0)
    found = problems(lrp, out)
    assert ("books", "0.png") in found
    assert sum(kind == "books" for kind, _ in found) == 2


def test_lines_that_say_nothing(lrp, out: Path) -> None:
    with (out / "manifest.jsonl").open("a") as file:
        file.write("{}\nnonsense\n[1]\n" + "[" * 100_000 + "\n" + '{"part": ' + "9" * 5000 + '}\n{"torn')
    assert [kind for kind, _ in problems(lrp, out)] == ["manifest"] * 6


def test_half_of_a_picture(lrp, out: Path) -> None:
    lines = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
    (out / "manifest.jsonl").write_text("".join(lines[:2]))
    assert ("incomplete", "0.png") in problems(lrp, out)


@pytest.mark.parametrize("path", ["../../secret.npy", "/etc/passwd", "a/../../x", "link/x.npy", "nul\0.npy"])
def test_a_manifest_cannot_point_outside(lrp, out: Path, path: str) -> None:
    (out / "link").symlink_to("/", target_is_directory=True)
    edit(out, 0, files={"npy": {"path": path, "bytes": 1, "sha256": "0"}})
    assert ("outside", path) in problems(lrp, out)
    with pytest.raises(LrpError, match="outside"):
        _ = lrp_cli.load_run(out).records[0].relevance


def test_an_output_that_became_a_link_to_itself(lrp, out: Path) -> None:
    array = next(out.glob("*.npy"))
    array.unlink()
    array.symlink_to(array.name)
    assert ("missing", array.name) in problems(lrp, out)
    with pytest.raises(LrpError, match="cannot read"):
        _ = [record.relevance for record in lrp_cli.load_run(out).records]


def test_an_output_whose_name_no_file_can_have(lrp, out: Path) -> None:
    edit(out, 0, files={"npy": {"path": "\ud800.npy", "bytes": 1, "sha256": "0"}})
    assert ("missing", "\ud800.npy") in problems(lrp, out)


def test_without_a_manifest_it_is_wrong_usage(lrp, tmp_path: Path) -> None:
    assert lrp("verify", tmp_path).code == 2
    assert lrp("verify", tmp_path / "nope").code == 2
    with pytest.raises(UsageError, match=r"manifest\.jsonl"):
        lrp_cli.load_run(tmp_path)


def test_a_run_is_read_back(out: Path) -> None:
    run = lrp_cli.load_run(out)
    assert len(run) == 6
    assert [Path(image).name for image in run.failures] == ["2.png"]
    for record in run:
        assert record["score"] == pytest.approx(record["relevance_sum"] + record["absorbed_sum"], rel=1e-3, abs=1e-5)
        assert record.relevance.shape == (3, 64, 64)
        assert record.relevance.dtype == np.float32
        assert record.picture().size == (64, 64)
        assert record.mapping.original == (40, 30)
    assert run.records[2]["versus"] == 2
    with pytest.raises(UsageError, match="no panel was written"):
        run.records[0].path("panel")


def test_arrays_are_read_only_when_asked_for(out: Path) -> None:
    for file in out.glob("*.npy"):
        file.unlink()
    run = lrp_cli.load_run(str(out))
    with pytest.raises(LrpError, match="cannot read"):
        _ = run.records[0].relevance


def test_a_data_frame_has_a_row_for_each_record(out: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = lrp_cli.load_run(out).to_dataframe()
    assert len(frame) == 6
    assert {"image", "target", "label", "score"} <= set(frame.columns)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/lrp-was-executed"),))  # noqa: S108


def test_arrays_are_never_unpickled(lrp, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    victim = first(out, ".npy")
    np.save(victim, np.array([Bomb()], dtype=object), allow_pickle=True)
    data = victim.read_bytes()
    called = []
    monkeypatch.setattr(pickle, "loads", lambda *_: called.append(1))
    monkeypatch.setattr(pickle, "load", lambda *_: called.append(1))
    edit(out, 0, files={"npy": {"path": victim.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})
    assert ("damaged", victim.name) in problems(lrp, out)
    with pytest.raises(LrpError, match="cannot read"):
        _ = lrp_cli.load_run(out).records[0].relevance
    assert called == []
    assert not Path("/tmp/lrp-was-executed").exists()  # noqa: S108
