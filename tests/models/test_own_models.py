import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest
import torch

from lrp_cli.errors import ModelError
from lrp_cli.images import Preprocessing, decode
from lrp_cli.models import load_model, own_models, weights_names
from lrp_cli.models.labels import imagenet_labels

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, SHARED = ROOT / "sample_images", ROOT.parent / "shared"

NET = """
    import torch
    from torch import nn

    def net(classes=3):
        features = [nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*features, nn.Linear(4, classes))
"""


def write(path: Path, *parts: str) -> Path:
    path.write_text("\n".join(dedent(part) for part in parts))
    return path


def refusal(model: str, weights: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(model, weights)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(model.rpartition(":")[0])
    return message


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    model = f"{write(tmp_path / 'nets.py', NET)}:net"
    loaded = load_model(model)
    assert loaded.name == model
    assert loaded.weights == "own"
    assert loaded.labels == ("class 0", "class 1", "class 2")
    assert loaded.preprocessing == Preprocessing(256, 224)
    assert not any(module.training for module in loaded.network.modules())
    assert loaded.network(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert weights_names(model) == ("own",)
    for weights in ("own", "default"):
        again = load_model(model, weights).network
        assert torch.equal(again[4].weight, loaded.network[4].weight)  # what the function draws is seeded
    assert not torch.equal(load_model(model, seed=1).network[4].weight, loaded.network[4].weight)


def test_labels_and_preprocessing(tmp_path: Path) -> None:
    file = write(tmp_path / "nets.py", NET, "def many():\n    return net(1000).half()")
    many = load_model(f"{file}:many", preprocessing={"resize": None, "crop": 32, "mean": (0, 0, 0)})
    assert many.labels == imagenet_labels()
    assert many.preprocessing == Preprocessing(None, 32, mean=(0, 0, 0))
    assert {parameter.dtype for parameter in many.network.parameters()} == {torch.float32}
    (tmp_path / "names.txt").write_text("cat\ndog\neel\n")
    assert load_model(f"{file}:net", labels=tmp_path / "names.txt").labels == ("cat", "dog", "eel")


def test_the_file_may_import_its_neighbours_and_define_dataclasses(tmp_path: Path) -> None:
    write(tmp_path / "lrp_test_neighbour.py", "CLASSES = 6")
    write(tmp_path / "lrp_test_late_neighbour.py", "CHANNELS = 3")
    file = write(
        tmp_path / "nets.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from torch import nn
        import lrp_test_neighbour

        @dataclass
        class Options:
            classes: int = lrp_test_neighbour.CLASSES

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                import lrp_test_late_neighbour
                self.layer = nn.Linear(lrp_test_late_neighbour.CHANNELS, Options().classes)

            def forward(self, x):
                return self.layer(x.mean((2, 3)))
        """,
    )
    before = list(sys.path)
    assert len(load_model(f"{file}:Net").labels) == 6
    assert sys.path == before


def test_the_code_is_the_file_and_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what is installed below its directory, whatever else there is among Python's modules."""
    assert load_model("squeezenet1_1", "random").code == ()
    (tmp_path / "net.py").write_text("import torch\ndef build():\n    return torch.nn.Flatten()\n")
    files = {
        "neighbour": "parts/layers.py",
        "library": "venv/lib/site-packages/library.py",
        "json": "pyenv/lib/python3.11/json/__init__.py",
        "odd": Path("odd.py"),
    }
    monkeypatch.setattr(own_models, "_STANDARD_LIBRARY", (f"{tmp_path}/pyenv/lib/python3.11/",))
    for name, file in files.items():
        module = ModuleType(name)
        module.__file__ = tmp_path / file if isinstance(file, Path) else str(tmp_path / file)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "strange", object())  # type: ignore[arg-type]
    loaded = load_model(f"{tmp_path / 'net.py'}:build")
    assert loaded.code == (tmp_path / "net.py", tmp_path / "parts/layers.py")


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for classes in (3, 4):
        (tmp_path / str(classes)).mkdir()
        write(tmp_path / str(classes) / "nets.py", NET, f"def own():\n    return net({classes})")
    sizes = [len(load_model(f"{tmp_path / str(classes)}/nets.py:own").labels) for classes in (3, 4)]
    assert sizes == [3, 4]
    assert "nets" not in sys.modules


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    file = write(tmp_path / "nets.py", NET)
    assert len(load_model(f"{file}:net").labels) == 3
    write(file, NET, "def net2():\n    return net(20)")
    assert len(load_model(f"{file}:net2").labels) == 20


def test_checkpoints_load_into_it(tmp_path: Path) -> None:
    model = f"{write(tmp_path / 'nets.py', NET)}:net"
    trained = load_model(model, seed=7).network
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "x.pth")
    loaded = load_model(model, str(tmp_path / "x.pth"))
    assert torch.equal(loaded.network[4].weight, trained[4].weight)
    assert loaded.weights == str(tmp_path / "x.pth")
    torch.save({"other": torch.zeros(1)}, tmp_path / "y.pth")
    with pytest.raises(ModelError, match=r"these weights do not fit .*nets\.py:net: 4 missing .* 1 unexpected \(other"):
        load_model(model, str(tmp_path / "y.pth"))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_whose_own_names_look_wrapped_takes_its_checkpoint(tmp_path: Path, wrapped: bool) -> None:
    file = write(
        tmp_path / "nets.py",
        NET,
        """
        class Holder(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = net()

            def forward(self, x):
                return self.model(x)
        """,
    )
    trained = load_model(f"{file}:Holder", seed=7).network
    state = {("module." if wrapped else "") + key: tensor for key, tensor in trained.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    loaded = load_model(f"{file}:Holder", str(tmp_path / "x.pth")).network
    assert torch.equal(loaded.model[4].weight, trained.model[4].weight)


def test_what_the_code_prints_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "nets.py", NET, "print('importing')\ndef loud():\n    print('building')\n    return net()")
    load_model(f"{file}:loud")
    assert capsys.readouterr() == ("", "importing\nbuilding\n")


@pytest.mark.parametrize(
    ("code", "function", "complaint"),
    [
        ("import lrp_no_such_thing", "net", "cannot be imported (ModuleNotFoundError in line 1: No module named"),
        ("x = 1\ndef net(:", "net", "cannot be imported (SyntaxError in line 2: "),
        ("import sys\nsys.exit('bye')", "net", "cannot be imported (SystemExit in line 2: bye)"),
        (NET, "nett", "has no function 'nett'; did you mean 'net'?"),
        (NET, "xyzzy", "has no function 'xyzzy'; it defines net"),
        ("", "net", "has no function 'net'"),
        ("net = 3", "net", "'net' is an int, not a function that returns a network"),
        (NET + "    built = net()", "built", "'built' is a Sequential, not a function that returns a network"),
        ("def net():\n    raise ValueError('no\\nluck')", "net", ":net failed (ValueError in line 2: no luck)"),
        ("def net():\n    assert False", "net", ":net failed (AssertionError in line 2)"),
        ("def net(size):\n    pass", "net", ":net failed (TypeError: net() missing 1 required positional argument"),
        ("def net():\n    return None", "net", ":net returned None, not a torch.nn.Module"),
        ("def net():\n    return [1]", "net", ":net returned a list, not a torch.nn.Module"),
        (
            "from torch import nn\ndef net():\n    return nn.Linear(7, 2)",
            "net",
            "the network fails on a picture of 224 x 224 pixels (RuntimeError: ",
        ),
        (
            "from torch import nn\ndef net():\n    return nn.Conv2d(3, 5, 3)",
            "net",
            "scores of shape (1, N), not a tensor of shape (1, 5, 222, 222)",
        ),
        (
            "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        return {'logits': x}",
            "Net",
            "scores of shape (1, N), not a dict",
        ),
    ],
)
def test_code_that_goes_wrong(tmp_path: Path, code: str, function: str, complaint: str) -> None:
    assert complaint in refusal(f"{write(tmp_path / 'nets.py', code)}:{function}")


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    file = write(tmp_path / "nets.py", NET)
    assert refusal(f"{tmp_path}/nope.py:net") == f"{tmp_path}/nope.py: no such file"
    assert refusal(f"{file}:").endswith("nets.py: name the function that returns the network: " + f"{file}:FUNCTION")
    with pytest.raises(ModelError, match="name the function"):
        load_model(str(file))
    (tmp_path / "folder.py").mkdir()
    assert refusal(f"{tmp_path}/folder.py:net").endswith("is a directory")
    assert "makes its own weights" in refusal(f"{file}:net", "random")
    with pytest.raises(ModelError, match="unknown weights 'nope'"):
        load_model(f"{file}:net", "nope")


def test_nothing_runs_before_the_network_is_built(tmp_path: Path) -> None:
    file = write(tmp_path / "nets.py", NET, f"open({str(tmp_path / 'mark')!r}, 'w')")
    weights_names(f"{file}:net")
    refusal(f"{file}:net", "random")
    assert not (tmp_path / "mark").exists()
    load_model(f"{file}:net")
    assert (tmp_path / "mark").exists()


@pytest.mark.skipif(not SHARED.exists(), reason="the shared weights are not here")
def test_a_trained_vision_transformer_sees_the_cat() -> None:
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    model = load_model(f"{SHARED}/networks.py:vit_tiny", preprocessing=half)
    view = model.preprocessing.view(decode(SAMPLES / "cat.jpg"))
    assert model.labels[model.network(model.preprocessing.tensor(view)[None]).argmax()].endswith("cat")


def test_a_relative_path_is_one_from_the_working_directory(tmp_path: Path) -> None:
    write(tmp_path / "nets.py", NET)
    code = "from lrp_cli.models import load_model; print(len(load_model('nets.py:net').labels))"
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
