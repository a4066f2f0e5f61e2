import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lrp_cli.errors import ModelError, UsageError
from lrp_cli.models import list_models, load_model, weights_names
from lrp_cli.models.labels import imagenet_labels

timm = pytest.importorskip("timm", reason="timm is an optional dependency")
huggingface_hub = pytest.importorskip("huggingface_hub", reason="timm brings it along")

SAMPLES = Path(__file__).resolve().parents[2] / "sample_images"
NAMES = ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv4_conv_small", "efficientformer_l1"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for every test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> Any:
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)


def put_into_cache(cache: Path, repository: str, name: str) -> Path:
    """Return where the hub's client looks for the file of a repository that it has downloaded."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40) / name


def same(network: nn.Module, other: nn.Module, size: int = 224) -> bool:
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        return torch.equal(network(x), other(x))


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_are_those_that_timm_draws(name: str) -> None:
    loaded = load_model(f"timm:{name}", "random", seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = timm.create_model(name).eval()
    assert loaded.name == f"timm:{name}"
    assert loaded.weights == "random(seed=3)"
    assert loaded.labels == imagenet_labels()
    assert not any(module.training for module in loaded.network.modules())
    drawn = dict(expected.named_parameters())  # batch statistics are calibrated, and zeros are drawn as well
    assert all(torch.equal(p, drawn[key]) for key, p in loaded.network.named_parameters() if drawn[key].any())


# Shorter side, whole picture squashed (with and without a crop after it), and not the usual size.
@pytest.mark.parametrize(
    "name",
    [
        *NAMES,
        "vit_base_patch16_clip_224.openai_ft_in1k",
        "convnext_tiny.in12k_ft_in1k_384",
        "dm_nfnet_f0.dm_in1k",
        "inception_v4.tf_in1k",
    ],
)
def test_pictures_are_prepared_as_timm_does(name: str) -> None:
    from lrp_cli.models.timm_models import find_timm

    config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    preprocessing = find_timm(f"timm:{name}").preprocessing(None, weights=None)
    with Image.open(SAMPLES / "cat.jpg") as opened:
        picture = opened.convert("RGB").resize((530, 401))
    expected = timm.data.create_transform(**config)(picture)
    prepared = preprocessing.tensor(preprocessing.view(picture))
    assert prepared.shape == expected.shape
    torch.testing.assert_close(prepared, expected, rtol=0, atol=1e-5)


def test_published_weights_come_from_the_hubs_cache(own_cache: Path) -> None:
    assert weights_names("timm:resnet18")[:2] == ("a1_in1k", "a2_in1k")
    assert weights_names("timm:ResNet18.tv_in1k")[:2] == ("tv_in1k", "a1_in1k")
    for tag in ("a1_in1k", "tv_in1k"):
        torch.manual_seed(len(tag))
        path = put_into_cache(own_cache, f"timm/resnet18.{tag}", "model.safetensors")
        save_file(timm.create_model("resnet18").state_dict(), path)
    for model, weights, tag in [
        ("timm:resnet18", None, "a1_in1k"),
        ("TIMM:resnet18", "TV_in1k", "tv_in1k"),
        ("timm:resnet18.tv_in1k", "default", "tv_in1k"),
        ("timm:resnet18.tv_in1k", "a1_in1k", "a1_in1k"),
    ]:
        loaded = load_model(model, weights)
        expected = timm.create_model(f"resnet18.{tag}", pretrained=True).eval()  # reads the same cache by itself
        assert loaded.weights == tag
        drawn = dict(expected.named_parameters())
        assert all(torch.equal(p, drawn[key]) for key, p in loaded.network.named_parameters() if drawn[key].any())
        config = timm.data.resolve_model_data_config(expected)
        assert loaded.preprocessing.interpolation == config["interpolation"]
        assert "state_dict" not in loaded.network.pretrained_cfg


def test_a_pickle_is_taken_where_there_are_no_safetensors(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("resnet10t").eval()
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")

    def metadata(url: str) -> None:
        if url.endswith("model.safetensors"):
            raise huggingface_hub.utils.EntryNotFoundError("404 Not Found")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", metadata)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: str(tmp_path / name))
    assert same(load_model("timm:resnet10t").network, network)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    assert "no such file" in refusal("timm:resnet10t")


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_published_pickles_run_no_code(own_cache: Path, tmp_path: Path) -> None:
    path = put_into_cache(own_cache, "timm/resnet18.a1_in1k", "pytorch_model.bin")
    torch.save({"state_dict": {"w": torch.zeros(1)}, "more": Malicious(f"touch {tmp_path / 'mark'}")}, path)
    message = refusal("timm:resnet18")
    assert "could run code" in message
    assert str(path) in message
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["resnet10t", "deit_tiny_distilled_patch16_224", "mobilenetv4_conv_small"])
def test_the_number_of_classes_comes_from_the_checkpoint(name: str, tmp_path: Path) -> None:
    network = timm.create_model(name, num_classes=5).eval()
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    loaded = load_model(f"timm:{name}", str(tmp_path / "x.safetensors"))
    assert same(loaded.network, network)
    assert loaded.labels == tuple(f"class {index}" for index in range(5))


def test_timm_adapts_checkpoints_of_another_form(tmp_path: Path) -> None:
    """Position embeddings for another size of the input are resampled, as when timm itself reads the file."""
    larger = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=160)
    torch.save({"state_dict": larger.state_dict()}, tmp_path / "x.pth")
    loaded = load_model("timm:vit_tiny_patch16_224", str(tmp_path / "x.pth"))
    overlay = {"file": str(tmp_path / "x.pth"), "num_classes": 3}
    expected = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3
    ).eval()
    assert same(loaded.network, expected)
    assert len(loaded.labels) == 3
    assert "state_dict" not in loaded.network.pretrained_cfg


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state: dict[str, Tensor] = timm.create_model("resnet10t").state_dict()
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "x.pth")
    assert "these weights do not fit timm:resnet10t: 1 missing (layer1.0.conv1.weight)" in refusal(
        "timm:resnet10t", str(tmp_path / "x.pth")
    )


def refusal(name: str, weights: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(name, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_models_without_classes(tmp_path: Path) -> None:
    for weights in (None, "random", "mim_in22k"):
        message = refusal("timm:eva02_tiny_patch14_224", weights)
        assert message.startswith("timm:eva02_tiny_patch14_224.mim_in22k is no classifier")
        assert "--weights FILE" in message
    assert refusal("timm:resnet50.bamboo").endswith("is no classifier: it gives features; give --weights a1_in1k")

    features = timm.create_model("eva02_tiny_patch14_224")
    save_file(features.state_dict(), tmp_path / "features.safetensors")
    assert "is no classifier" in refusal("timm:eva02_tiny_patch14_224", str(tmp_path / "features.safetensors"))
    tuned = timm.create_model("eva02_tiny_patch14_224", num_classes=4).eval()
    save_file(tuned.state_dict(), tmp_path / "tuned.safetensors")
    assert same(load_model("timm:eva02_tiny_patch14_224", str(tmp_path / "tuned.safetensors")).network, tuned)


def test_unknown_names_are_met_with_the_closest() -> None:
    assert "did you mean 'timm:resnet18'" in refusal("timm:resnt18")
    assert "`lrp models timm:` lists" in refusal("timm:xyzzy")
    message = refusal("timm:resnet18.a1_in1")
    assert message.startswith("unknown weights 'a1_in1' in 'timm:resnet18.a1_in1' (published are: a1_in1k, ")
    assert message.endswith("did you mean 'a1_in1k'?")
    assert "no weights are published for timm:coatnet_0_224" in refusal("timm:coatnet_0_224")


@pytest.mark.parametrize(("name", "host"), [("resnet18", "huggingface.co"), ("gcvit_xxtiny", "github.com")])
def test_without_a_network_one_line_says_what_works(name: str, host: str, tmp_path: Path) -> None:
    message = refusal(f"timm:{name}")
    assert f"of timm:{name} could not be downloaded from https://{host}/" in message
    assert "(Name or service not known)" in message
    assert f"cached {'under' if name == 'resnet18' else 'at'} {tmp_path}" in message
    assert "--weights FILE" in message
    assert "efficientnet_lite0" in message


def test_without_timm_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refusal("timm:resnet18") == "timm:NAME needs timm; install it: pip install 'lrp-cli[timm]'"
    with pytest.raises(ModelError, match="pip install"):
        list_models("timm:resnet*")


def test_classes_of_the_larger_imagenets_have_their_names() -> None:
    from lrp_cli.models.timm_models import find_timm

    architecture = find_timm("timm:mixer_b16_224.miil_in21k")
    names = architecture.categories(None)
    assert len(names) == 11221
    assert len(set(names)) > 10000
    assert "Border collie" in names
    assert architecture.categories("goog_in21k_ft_in1k") == imagenet_labels()


def test_listing(own_cache: Path) -> None:
    path = put_into_cache(own_cache, "timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k", "model.safetensors")
    path.touch()
    entries = {entry.name: entry for entry in list_models("timm:VIT_tiny*")}
    assert entries["timm:vit_tiny_patch16_384"].to_json() == {
        "name": "timm:vit_tiny_patch16_384",
        "weights": "augreg_in21k_ft_in1k",
        "weights_names": ("augreg_in21k_ft_in1k",),
        "input_size": (384, 384),
        "parameters": None,
        "cached": True,
        "config": None,
    }
    assert not entries["timm:vit_tiny_patch16_224"].cached
    assert list_models("timm:resnet50")[0].name.startswith("timm:")
    assert list_models("timm:coatnet_0_224")[0].weights is None
    with pytest.raises(UsageError, match="no model matches 'timm:eva02_tiny_patch14_224'"):
        list_models("timm:eva02_tiny_patch14_224")  # no classifier
