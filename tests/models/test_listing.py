from pathlib import Path

import pytest
import torch
from torchvision import models

from lrp_cli.errors import UsageError
from lrp_cli.models import list_models, load_model, model_names


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


def test_every_name_has_an_entry_with_what_torchvision_says() -> None:
    entries = list_models()
    assert [entry.name for entry in entries] == model_names()
    for entry in entries[1:]:
        default = models.get_model_weights(entry.name).DEFAULT
        assert entry.weights == default.name
        assert entry.weights_names[0] == default.name
        assert len(entry.weights_names) == len(models.get_model_weights(entry.name))
        assert entry.input_size == (default.transforms().crop_size[0],) * 2
        assert entry.parameters == default.meta["num_params"]
        assert not entry.cached


def test_the_default_model_is_always_there() -> None:
    entry = list_models()[0]
    loaded = load_model(entry.name)
    assert entry.cached
    assert entry.weights == loaded.weights
    assert entry.input_size == loaded.preprocessing.input_size
    assert entry.parameters == sum(parameter.numel() for parameter in loaded.network.parameters())


def test_cached_weights_are_seen(own_cache: Path) -> None:
    own_cache.mkdir(parents=True)
    (own_cache / Path(models.ResNet50_Weights.IMAGENET1K_V1.url).name).touch()
    (own_cache / Path(models.ResNet18_Weights.DEFAULT.url).name).touch()
    cached = {entry.name for entry in list_models() if entry.cached}
    assert cached == {"efficientnet_lite0", "resnet18"}  # of resnet50 it is not the default


def test_the_config_is_the_one_that_auto_gives() -> None:
    from lrp_cli.rulesets.auto import preset_for

    for entry in list_models("*_t*"):
        network = models.get_model(entry.name, weights=None)
        assert entry.config == preset_for(network.modules()), entry.name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("resnet5", ["resnet50", "wide_resnet50_2"]),
        ("RESNET5*", ["resnet50"]),
        ("vgg1?", ["vgg11", "vgg13", "vgg16", "vgg19"]),
        ("swin_[ts]", ["swin_s", "swin_t"]),
        ("LITE", ["efficientnet_lite0"]),
        (" alexnet ", ["alexnet"]),
    ],
)
def test_patterns(pattern: str, names: list[str]) -> None:
    assert [entry.name for entry in list_models(pattern)] == names


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("resnett50", "^no model matches 'resnett50'; did you mean 'resnet50' or .*$"),
        ("xyzzy*", "^no model matches 'xyzzy\\*'$"),
    ],
)
def test_patterns_that_match_nothing(pattern: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        list_models(pattern)


def test_no_network_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.nn.Conv2d, "__init__", refuse)
    monkeypatch.setattr(torch.nn.Linear, "__init__", refuse)
    assert list_models()
