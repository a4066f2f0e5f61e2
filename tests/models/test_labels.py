import json
from pathlib import Path
from typing import Any

import pytest
from torchvision.models import ResNet50_Weights

from lrp_cli.errors import UsageError
from lrp_cli.models.labels import imagenet_labels, read_labels


def test_imagenet_labels() -> None:
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert (labels[0], labels[281], labels[999]) == ("tench", "tabby", "toilet tissue")
    assert list(labels) == ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


def test_text_has_one_name_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("\ufefftench\r\n great white shark \r\nÉtoile\r\n\r\n", encoding="utf-8")
    assert read_labels(tmp_path / "x.txt", 3) == ("tench", "great white shark", "Étoile")


@pytest.mark.parametrize(
    "content",
    [
        ["a", "b", "c"],
        {"0": "a", "1": "b", "2": "c"},
        {"2": "c", "0": "a", "1": "b"},
        {"0": ["n1", "a"], "1": "b", "2": "c"},
    ],
)
def test_json(tmp_path: Path, content: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert read_labels(tmp_path / "x.json", 3) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.txt", b"a\nb\n", "names 2 classes, but the model has 3"),
        ("x.txt", b"", "names 0 classes"),
        ("x.txt", b"a\n\nb\n", "line 2 is empty"),
        ("x.txt", b"\xff\xfe\x00", "must be UTF-8"),
        ("x.json", b"[1, 2, 3]", "the label of class 0 is not a name"),
        ("x.json", b'["a", "b", ""]', "the label of class 2 is not a name"),
        ("x.json", b'{"1": "a", "2": "b", "3": "c"}', 'indices "0" to "2"'),
        ("x.json", b'"abc"', "must be a list of names"),
        ("x.json", b"[", "not valid JSON"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=complaint) as caught:
        read_labels(tmp_path / name, 3)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_labels(tmp_path / "x.txt", 3)
