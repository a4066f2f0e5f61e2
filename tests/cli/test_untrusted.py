"""What comes from strangers executes nothing and writes nowhere else."""

import pickle
from pathlib import Path

import pytest
import torch

CAT = Path(__file__).resolve().parents[2] / "sample_images/cat.jpg"


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "executed")))  # noqa: S301
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["evil.pth", "evil.pt", "evil.safetensors"])
def test_a_checkpoint_with_code_in_it_is_refused(lrp, tmp_path: Path, name: str) -> None:
    torch.save({"state_dict": Touch(tmp_path / "executed")}, tmp_path / name)
    result = lrp.explain(CAT, "--weights", tmp_path / name, "-o", tmp_path / "out")
    assert result.code == 3
    assert name in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


LAUGHS = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    + [f"{new}: &{new} [{', '.join(['*' + old] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch executed']",
        "description: !!python/object/apply:pathlib.Path.touch [executed]\nlayers: []",
        "layers: !!python/name:os.system",
        LAUGHS,
        "&a [*a]",
        "[" * 100_000,
        "\x00\x01",
    ],
)
def test_a_config_with_code_or_a_bomb_in_it_is_refused(
    lrp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(text)
    result = lrp("explain", CAT, "--config", "evil.yaml", "-o", "out")
    assert result.code == 4
    assert len(result.err.splitlines()) == 1
    assert "evil.yaml" in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.yaml"]


def test_a_manifest_from_a_stranger_removes_and_overwrites_nothing(lrp, tmp_path: Path) -> None:
    import hashlib
    import json

    secret = tmp_path / "secret.npy"
    secret.write_bytes(b"precious")
    out = tmp_path / "out"
    lrp.explain(CAT, "-o", out)
    line = json.loads((out / "manifest.jsonl").read_text())
    # As if an earlier version of the cat had been written outside: superseded, it would be removed.
    line["input"]["sha256"] = "0" * 64
    digest = hashlib.sha256(b"precious").hexdigest()
    traps = []
    (out / "notes.txt").write_bytes(b"precious")
    (out / "link").symlink_to(tmp_path, target_is_directory=True)
    for path in ("../secret.npy", str(secret), "link/secret.npy", "notes.txt", "cat.jpg.x/../../secret.npy"):
        traps.append(line | {"files": {"npy": {"path": path, "bytes": 8, "sha256": digest}}, "target": len(traps)})
    (out / "manifest.jsonl").write_text("".join(json.dumps(trap) + "\n" for trap in traps))
    assert lrp.explain(CAT, "-o", out).code == 0
    assert secret.read_bytes() == b"precious"
    assert (out / "notes.txt").read_bytes() == b"precious"
