import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from lrp_cli.errors import ModelError, UsageError
from lrp_cli.images import Preprocessing
from lrp_cli.models import load_model, model_names, weights_names
from lrp_cli.models.checkpoints import class_weight
from lrp_cli.models.downloads import cached_file
from lrp_cli.models.torchvision_models import TorchvisionArchitecture

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, SHARED = ROOT / "sample_images", ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for every test, so that none depends on what was downloaded before."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", refuse)


def serve(monkeypatch: pytest.MonkeyPatch, content: Path) -> None:
    """Let downloads find ``content`` behind every address."""
    from urllib.request import urlopen

    monkeypatch.setattr("torch.hub.urlopen", lambda *args, **options: urlopen(content.as_uri()))  # noqa: S310


def test_names() -> None:
    names = model_names()
    assert names[0] == "efficientnet_lite0"
    assert names[1:] == sorted(names[1:])
    assert {"resnet50", "vit_b_16", "swin_t", "vgg16", "maxvit_t"} < set(names)
    assert not {"quantized_resnet50", "fcn_resnet50", "raft_large"} & set(names)
    assert weights_names("resnet50") == ("IMAGENET1K_V2", "IMAGENET1K_V1")
    assert all(weights_names(name) for name in names)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, lrp_cli.models, lrp_cli.images, lrp_cli.models.targets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "inception_v3", "regnet_y_400mf", "vit_b_32"])
def test_random_weights_are_seeded_and_leave_the_callers_numbers_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (load_model(name, "Random", seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.weights == "random(seed=5)"
    assert not one.network.training
    states = [model.network.state_dict() for model in (one, same, other)]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    assert any(not torch.equal(tensor, states[2][key]) for key, tensor in states[0].items())
    assert one.preprocessing.input_size is not None
    scores = one.network(torch.randn(1, 3, *one.preprocessing.input_size))
    assert scores.shape == (1, len(one.labels)) == (1, 1000)


# torchvision treats these beyond building and loading: it converts inputs (googlenet, inception), renames keys
# (densenet), or changes the input size (vit).
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet18", "IMAGENET1K_V1"),
        ("googlenet", "IMAGENET1K_V1"),
        ("inception_v3", "IMAGENET1K_V1"),
        ("densenet121", "IMAGENET1K_V1"),
        pytest.param("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", marks=pytest.mark.slow),
    ],
)
def test_published_weights_make_the_same_network_as_torchvision(name: str, weights: str, own_cache: Path) -> None:
    member = models.get_model_weights(name)[weights]
    size = member.transforms().crop_size[0]
    options = {"image_size": size} if name == "vit_b_16" else {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": True, "init_weights": False}
    state = models.get_model(name, weights=None, **options).state_dict()
    if name == "densenet121":
        state = {
            key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
            for key, value in state.items()
            if not key.endswith("num_batches_tracked")
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    own_cache.mkdir(parents=True)
    torch.save(state, own_cache / Path(member.url).name)

    expected = models.get_model(name, weights=member).eval()
    loaded = load_model(name, weights.lower())
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(x), expected(x), rtol=0, atol=0)
    assert loaded.weights == weights
    assert loaded.labels == tuple(member.meta["categories"])
    assert loaded.preprocessing == Preprocessing.from_transforms(member.transforms())

    # The same file by its path is recognised by its name.
    by_path = load_model(name, str(own_cache / Path(member.url).name))
    with torch.no_grad():
        assert torch.equal(by_path.network(x), expected(x))
    assert by_path.preprocessing == loaded.preprocessing


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_may_be_there_or_not(name: str, auxiliary: bool, tmp_path: Path) -> None:
    network = models.get_model(name, weights=None, num_classes=4, aux_logits=auxiliary, init_weights=False).eval()
    torch.save(network.state_dict(), tmp_path / "x.pth")
    loaded = load_model(name, str(tmp_path / "x.pth"))
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded.network(x), network(x))


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "squeezenet1_0",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "convnext_tiny",
        "regnet_x_400mf",
        "swin_t",
    ],
)
def test_the_number_of_classes_comes_from_the_checkpoint(name: str, tmp_path: Path) -> None:
    network = models.get_model(name, weights=None, num_classes=5).eval()
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    loaded = load_model(name, str(tmp_path / "x.safetensors"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.network(x), network(x))
    assert len(loaded.labels) == 5


def test_the_class_weight_is_found_in_every_family_of_models() -> None:
    """It is the one whose shape depends on the number of classes, besides its bias and auxiliary heads."""
    families = {models.get_model_builder(name).__module__: name for name in model_names()[1:]}
    assert len(families) > 10
    del families["torchvision.models.regnet"]  # cannot be built without memory; one of them is tested above
    for name in families.values():
        auxiliary = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with torch.device("meta"):
            many, few = (models.get_model(name, weights=None, num_classes=n, **auxiliary) for n in (1000, 10))
        shapes = {key: tensor.shape for key, tensor in few.state_dict().items()}
        differing = [key for key, tensor in many.state_dict().items() if tensor.shape != shapes[key]]
        assert class_weight(many) == differing[0], name


def test_a_vision_transformers_input_size_comes_from_the_checkpoint(tmp_path: Path) -> None:
    network = models.vit_b_32(num_classes=2, image_size=96).eval()
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    loaded = load_model("vit_b_32", str(tmp_path / "x.safetensors"))
    assert loaded.preprocessing.input_size == (96, 96)
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(loaded.network(x), network(x))


def test_vit_h_gets_the_preset_for_its_input_size() -> None:
    """Its first preset is for 518 pixels, but it is built for 224 unless weights ask for more."""
    architecture = TorchvisionArchitecture("vit_h_14")
    with torch.device("meta"):
        network = models.vit_h_14()
    assert architecture.preprocessing(network, weights=None).input_size == (224, 224)
    assert architecture.preprocessing(network, weights="IMAGENET1K_SWAG_E2E_V1").input_size == (518, 518)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared weights are not here")
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_trained_weights_see_the_cat(name: str) -> None:
    from lrp_cli.images import decode

    model = load_model(name, str(SHARED / f"weights/{name}.safetensors"))
    view = model.preprocessing.view(decode(SAMPLES / "cat.jpg"))
    assert model.labels[model.network(model.preprocessing.tensor(view)[None]).argmax()].endswith("cat")


def test_preprocessing_can_be_changed() -> None:
    changes = {"mean": (0, 0, 0), "resize": None, "crop": 32}
    assert load_model("squeezenet1_1", "random", preprocessing=changes).preprocessing == Preprocessing(
        None, 32, mean=(0, 0, 0)
    )
    with pytest.raises(UsageError, match="std must be above 0"):
        load_model("squeezenet1_1", "random", preprocessing={"std": (0, 0, 0)})


def refusal(name: str, weights: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(name, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_names_are_met_with_the_closest() -> None:
    assert "did you mean 'resnet50'" in refusal("resnet-50")
    assert "`lrp models` lists them" in refusal("xyzzy")
    assert "unknown weights 'IMAGENET1K_V3' for resnet50: give IMAGENET1K_V2, IMAGENET1K_V1, random" in refusal(
        "resnet50", "IMAGENET1K_V3"
    )
    assert "nope.pth: no such file" in refusal("resnet50", "nope.pth")
    assert "suffix" in refusal("resnet50", __file__)


@pytest.mark.usefixtures("offline")
def test_without_a_network_one_line_says_what_works(own_cache: Path) -> None:
    message = refusal("vgg11")
    assert message.startswith(
        "weights IMAGENET1K_V1 of vgg11 could not be downloaded from "
        f"{models.VGG11_Weights.DEFAULT.url} (Name or service not known)"
    )
    assert f"cached at {own_cache / 'vgg11-8a719046.pth'}" in message
    assert "--weights FILE" in message
    assert "efficientnet_lite0" in message
    assert list(own_cache.iterdir()) == []


def test_a_download_is_checked_and_cached(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "served.pth")
    serve(monkeypatch, tmp_path / "served.pth")
    digest = hashlib.sha256((tmp_path / "served.pth").read_bytes()).hexdigest()[:8]
    address = f"https://example.invalid/squeezenet1_1-{digest}.pth"
    monkeypatch.setattr(models.SqueezeNet1_1_Weights.DEFAULT.value, "url", address)

    assert load_model("squeezenet1_1").weights == "IMAGENET1K_V1"
    assert [path.name for path in own_cache.iterdir()] == [f"squeezenet1_1-{digest}.pth"]
    assert capfd.readouterr() == ("", "")
    cached_file(address).unlink()
    load_model("squeezenet1_1", progress=True)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "100" in printed.err


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: content + b"x"])
def test_a_damaged_download_does_not_stay(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "served.pth")
    (tmp_path / "served.pth").write_bytes(damage((tmp_path / "served.pth").read_bytes()))
    serve(monkeypatch, tmp_path / "served.pth")
    assert "invalid hash value" in refusal("squeezenet1_1")
    assert list(own_cache.iterdir()) == []


def test_a_broken_file_in_the_cache_is_named(own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    path = own_cache / Path(models.SqueezeNet1_1_Weights.DEFAULT.url).name
    path.write_bytes(b"PK\x03\x04 half a file")
    message = refusal("squeezenet1_1")
    assert str(path) in message
    assert "remove the file" in message
