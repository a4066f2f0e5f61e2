import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from lrp_cli.errors import ModelError
from lrp_cli.models import load_model
from lrp_cli.models.checkpoints import read_checkpoint

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A small network with seven classes; batch norms moved off their defaults."""
    torch.manual_seed(1)
    network = models.mnasnet0_5(num_classes=7)
    network(torch.randn(4, 3, 64, 64))
    return network.eval()


def same(network: nn.Module, other: nn.Module) -> bool:
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        return torch.equal(network(x), other(x))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".PTH", ".safetensors"])
def test_suffixes(trained: nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(trained.state_dict(), path)
    loaded = load_model("mnasnet0_5", str(path))
    assert same(loaded.network, trained)
    assert not loaded.network.training
    assert loaded.weights == str(path)
    assert loaded.labels == tuple(f"class {index}" for index in range(7))


@pytest.mark.parametrize("nested", [(), ("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_nesting_and_wrappers(trained: nn.Module, tmp_path: Path, nested: tuple[str, ...], prefix: str) -> None:
    content: dict[str, Any] = {prefix + key: tensor for key, tensor in trained.state_dict().items()}
    for key in nested:
        content = {"epoch": 3, key: content, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "x.pth")
    state = read_checkpoint(tmp_path / "x.pth")
    assert list(state) == list(trained.state_dict())
    assert same(load_model("mnasnet0_5", str(tmp_path / "x.pth")).network, trained)


def test_a_prefix_that_not_every_key_has_stays(tmp_path: Path) -> None:
    torch.save({"model.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "x.pth")
    assert list(read_checkpoint(tmp_path / "x.pth")) == ["model.a", "b"]


def test_half_precision_becomes_single(trained: nn.Module, tmp_path: Path) -> None:
    save_file({key: tensor.half() for key, tensor in trained.state_dict().items()}, tmp_path / "x.safetensors")
    network = load_model("mnasnet0_5", str(tmp_path / "x.safetensors")).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_old_layout_of_mnasnet_is_read_by_its_version(tmp_path: Path) -> None:
    """Version 1 has a narrower stem, and says so only in the metadata of the state dict."""
    old = models.mnasnet0_5()
    with pytest.warns(UserWarning, match="MNASNet"):
        old._load_from_state_dict({}, "", {"version": 1}, False, [], [], [])
    torch.save(old.state_dict(), tmp_path / "x.pth")
    with pytest.warns(UserWarning, match="MNASNet"):
        network = load_model("mnasnet0_5", str(tmp_path / "x.pth")).network
    assert network.layers[0].out_channels == 32
    assert same(network, old.eval())


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("style", ["zip", "legacy", "raw"])
def test_a_pickle_with_code_is_refused_and_runs_nothing(tmp_path: Path, style: str) -> None:
    mark = tmp_path / "mark"
    content = {"state_dict": {"w": torch.zeros(2)}, "args": Malicious(f"touch {mark}")}
    if style == "raw":
        (tmp_path / "x.pth").write_bytes(pickle.dumps(content["args"], protocol=2))
    else:
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=style == "zip")
    message = complaint(tmp_path / "x.pth")
    assert "system" in message or style == "raw"
    assert "code" in message
    assert not mark.exists()
    if style != "raw":  # the trap does work where nobody is careful
        torch.load(tmp_path / "x.pth", weights_only=False)
        assert mark.exists()


def test_checkpoints_of_torchvisions_reference_scripts(trained: nn.Module, tmp_path: Path) -> None:
    """They hold the parsed arguments, and the state of schedulers and optimisers, beside the weights."""
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    warmup = torch.optim.lr_scheduler.LinearLR(optimiser)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 5])
    schedule = torch.optim.lr_scheduler.SequentialLR(optimiser, [warmup, steps], milestones=[3])
    content = {
        "model": trained.state_dict(),
        "optimizer": optimiser.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, model="mnasnet0_5", milestones=[2, 5], nested=argparse.Namespace(a=None)),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    assert same(load_model("mnasnet0_5", str(tmp_path / "checkpoint.pth")).network, trained)


def test_allowing_arguments_lets_no_code_in_through_them(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    arguments = argparse.Namespace(command=Malicious(f"touch {mark}"))
    torch.save({"model": {"w": torch.zeros(2)}, "args": arguments}, tmp_path / "x.pth")
    assert "system" in complaint(tmp_path / "x.pth")
    assert not mark.exists()
    # Nor is torch left more trusting than before.
    torch.save(argparse.Namespace(), tmp_path / "y.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "y.pth", weights_only=True)


def complaint(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def test_files_that_are_no_checkpoints_are_refused_in_one_line(trained: nn.Module, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "whole.pth")
    save_file(trained.state_dict(), tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / f"half_{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello, hello, hello")
    (tmp_path / "picture.bin").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "folder.pth").mkdir()
    torch.save(trained, tmp_path / "module.pt")
    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "args.pt")
    torch.save({"model": trained.state_dict(), "args": argparse.Namespace(a=Path("x"))}, tmp_path / "path.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "nothing.pt")
    assert "cut short" in complaint(tmp_path / "half_whole.pth")
    assert "not a readable safetensors file" in complaint(tmp_path / "half_whole.safetensors")
    assert "is empty" in complaint(tmp_path / "empty.pth")
    assert "not a checkpoint" in complaint(tmp_path / "text.pth")
    assert "not a readable safetensors file" in complaint(tmp_path / "text.safetensors")
    assert "not a checkpoint" in complaint(tmp_path / "picture.bin")
    assert "is a directory" in complaint(tmp_path / "folder.pth")
    assert "MNASNet" in complaint(tmp_path / "module.pt")
    assert "holds no weights" in complaint(tmp_path / "args.pt")
    assert "asks for the Python object pathlib" in complaint(tmp_path / "path.pt")
    assert "holds no weights" in complaint(tmp_path / "list.pt")
    assert "holds no weights" in complaint(tmp_path / "nothing.pt")
    assert "no such file" in complaint(tmp_path / "absent.pth")
    assert "suffix" in complaint(tmp_path / "text.onnx")


def misfit(model: str, state: State, path: Path) -> str:
    torch.save(state, path)
    with pytest.raises(ModelError) as caught:
        load_model(model, str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_do_not_fit_are_counted_and_named(trained: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    start = f"{path}: these weights do not fit mnasnet0_5: "
    state = trained.state_dict()
    del state["layers.0.weight"]
    assert misfit("mnasnet0_5", state, path) == f"{start}1 missing (layers.0.weight)"

    state = trained.state_dict() | {f"extra.{index}": torch.zeros(1) for index in range(5)}
    assert misfit("mnasnet0_5", state, path) == f"{start}5 unexpected (extra.0, extra.1, extra.2, ...)"

    state = trained.state_dict()
    state["layers.0.weight"] = torch.zeros(16, 1, 3, 3)
    assert misfit("mnasnet0_5", state, path).startswith(
        f"{start}1 of another shape (layers.0.weight (16, 1, 3, 3) instead of (16, 3, 3, 3))"
    )

    message = misfit("resnet18", trained.state_dict(), path)
    assert "missing (conv1.weight, bn1.weight, bn1.bias, ...)" in message
    assert "unexpected (layers.0.weight" in message


def test_counters_of_training_steps_may_be_missing(trained: nn.Module, tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in trained.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "x.safetensors")
    assert same(load_model("mnasnet0_5", str(tmp_path / "x.safetensors")).network, trained)


def test_labels_of_a_checkpoint(trained: nn.Module, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    assert load_model("mnasnet0_5", str(tmp_path / "x.pth"), labels=tmp_path / "names.txt").labels == tuple("abcdefg")
