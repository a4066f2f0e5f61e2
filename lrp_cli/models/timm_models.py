"""The classifiers of timm, named ``timm:NAME`` or ``timm:NAME.TAG`` as timm names them; the extra ``timm`` brings it.

Files are read by :mod:`lrp_cli.models.checkpoints`, never by timm, so nothing is unpickled; timm is handed the tensors
and renames and reshapes them for today's form of the network where they come from an older one.
"""

from dataclasses import dataclass
from importlib import import_module
from math import floor
from pathlib import Path
from typing import Any

from torch import nn

from lrp_cli.errors import ModelError, closest
from lrp_cli.images.preprocessing import Preprocessing
from lrp_cli.models.architectures import PublishedWeights
from lrp_cli.models.catalogue import TIMM_PREFIX
from lrp_cli.models.checkpoints import StateDict, fit
from lrp_cli.models.downloads import cached_file, download, hub_cached_file, hub_download
from lrp_cli.models.labels import IMAGENET_CLASSES, imagenet_labels


def timm_names() -> list[str]:
    """Return the names of timm's classifiers, ``timm:`` before each.

    Raises:
        ModelError: timm is not installed.
    """
    timm = _timm()
    # What an architecture without classes of its own has been trained for otherwise is found by its weights.
    classifying = {name.partition(".")[0] for name in timm.list_pretrained() if _config(name).num_classes}
    return [TIMM_PREFIX + name for name in timm.list_models() if name in classifying or _config(name).num_classes]


def find_timm(model: str) -> "TimmArchitecture":
    """Return the architecture of timm called ``model``, such as ``timm:resnet50`` or ``timm:resnet50.a1_in1k``.

    Raises:
        ModelError: there is none, or timm is not installed; the message names the closest ones.
    """
    timm = _timm()
    architecture, _, tag = model[len(TIMM_PREFIX) :].strip().lower().partition(".")
    known = timm.list_models()
    if architecture not in known:
        near = closest(f"{TIMM_PREFIX}{architecture}", (TIMM_PREFIX + name for name in known), count=3)
        raise ModelError(f"unknown model {model!r} (`lrp models {TIMM_PREFIX}` lists timm's){near}")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        choices = ", ".join(tags) or "none"
        raise ModelError(f"unknown weights {tag!r} in {model!r} (published are: {choices}){closest(tag, tags)}")
    default = tag or _config(architecture).tag
    # The weights that timm prefers, but none without classes where there are others.
    tags.sort(key=lambda other: (other != tag, not _config(f"{architecture}.{other}").num_classes, other != default))
    name = f"{TIMM_PREFIX}{architecture}" + (f".{tag}" if tag else "")
    return TimmArchitecture(name, architecture, tuple(tags))


@dataclass(frozen=True)
class TimmArchitecture:
    """A model that timm builds by name.

    Attributes:
        name: as ``load_model`` takes it.
        architecture: timm's name of it, without a tag.
        weights_names: the tags of the published weights, the default first.
    """

    name: str
    architecture: str
    weights_names: tuple[str, ...]

    def weights_file(self, weights: str, *, progress: bool) -> Path:
        """Return the published weights in the cache of the Hugging Face hub (a few: of torch), downloaded if absent."""
        config = self._config(weights)
        if not config.num_classes:
            raise self._no_classifier(weights)
        what = f"weights {weights} of {self.name}"
        if config.hf_hub_id:
            return hub_download(config.hf_hub_id, _hub_files(config), progress=progress, what=what)
        return download(config.url, progress=progress, what=what)

    def describe(self, weights: str) -> PublishedWeights:
        """Return what timm says about ``weights``; it does not count parameters."""
        config = self._config(weights)
        if config.hf_hub_id:
            cached = hub_cached_file(config.hf_hub_id, _hub_files(config)) is not None
        else:
            cached = cached_file(config.url).exists()
        return PublishedWeights(self.preprocessing(None, weights=weights).input_size, parameters=None, cached=cached)

    def recognise(self, file: Path) -> str | None:
        """Return None: the files are all called alike; a tag in the model's name says which weights they are."""
        return None

    def build(self, state: StateDict | None, *, weights: str | None, source: str) -> nn.Module:
        """Build the network as timm does for these weights, with as many classes as ``state`` has."""
        classes = self._config(weights).num_classes
        if state is not None and weights is None:
            classes = self._classes_of(state, classes)
        if not classes:
            raise self._no_classifier(weights)
        network: nn.Module = _timm().create_model(self._variant(weights), num_classes=classes)
        if state is None:
            return network
        try:
            fit(network, state, model=self.name, source=source)
        except ModelError:
            converted = self._convert(state, weights, classes)
            if converted is None:
                raise
            return converted
        return network

    def preprocessing(self, network: nn.Module | None, *, weights: str | None) -> Preprocessing:
        """Return how timm evaluates ``weights``: the crop is a fixed share of the resized picture."""
        resolved = import_module("timm.data").resolve_data_config(pretrained_cfg=self._config(weights).to_dict())
        _, height, width = resolved["input_size"]
        resize = (floor(height / resolved["crop_pct"]), floor(width / resolved["crop_pct"]))
        square = height == width
        return Preprocessing(
            # In the mode "squash" the whole picture is made square, else its shorter side is resized.
            resize=resize[0] if square and resolved["crop_mode"] != "squash" else resize,
            crop=height if square else (height, width),
            mean=resolved["mean"],
            std=resolved["std"],
            interpolation=resolved["interpolation"],
        )

    def count_classes(self, network: nn.Module, preprocessing: Preprocessing) -> int:
        """Return how many classes timm built ``network`` for."""
        return int(network.num_classes)  # type: ignore[arg-type]

    def categories(self, weights: str | None) -> tuple[str, ...]:
        """Return the names of ImageNet's classes, or of those of its supersets by their number."""
        classes = self._config(weights).num_classes
        if classes == IMAGENET_CLASSES:
            return imagenet_labels()
        data = import_module("timm.data")
        subset = data.infer_imagenet_subset({"num_classes": classes})
        return tuple(data.ImageNetInfo(subset).label_descriptions()) if subset else ()

    def _variant(self, weights: str | None) -> str:
        """Return timm's name for the network with ``weights``, or for None with those that it is named after."""
        tag = weights or (self.weights_names[0] if self.weights_names else "")
        return f"{self.architecture}.{tag}" if tag else self.architecture

    def _config(self, weights: str | None) -> Any:
        return _config(self._variant(weights))

    def _classes_of(self, state: StateDict, otherwise: int) -> int:
        """Return how many classes the classifier in ``state`` has; ``otherwise`` where it has none."""
        layers = self._config(None).classifier
        layers = [layers] if isinstance(layers, str) else layers or ()
        return next((len(state[f"{layer}.weight"]) for layer in layers if f"{layer}.weight" in state), otherwise)

    def _convert(self, state: StateDict, weights: str | None, classes: int) -> nn.Module | None:
        """Let timm adapt ``state`` to the network, as it does for its own; None where it cannot."""
        overlay = {"state_dict": dict(state), "num_classes": classes}
        try:
            network: Any = _timm().create_model(
                self._variant(weights), pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes
            )
        except Exception:
            # Each family has a converter of its own, and each fails in its own way on what it does not know.
            return None
        network.pretrained_cfg.pop("state_dict", None)
        return network  # type: ignore[no-any-return]

    def _no_classifier(self, weights: str | None) -> ModelError:
        other = [tag for tag in self.weights_names if self._config(tag).num_classes]
        instead = f"--weights {other[0]}" if other else "--weights FILE with a classifier of your own"
        return ModelError(f"{TIMM_PREFIX}{self._variant(weights)} is no classifier: it gives features; give {instead}")


def _timm() -> Any:
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise ModelError(f"{TIMM_PREFIX}NAME needs timm; install it: pip install 'lrp-cli[timm]'") from None


def _config(variant: str) -> Any:
    """Return what timm knows about ``NAME`` or ``NAME.TAG``."""
    return _timm().models.get_pretrained_cfg(variant)


def _hub_files(config: Any) -> list[str]:
    """Return the names that the file may have on the hub, safetensors first."""
    name = Path(config.hf_hub_filename or "pytorch_model.bin")
    safe = name.with_suffix(".safetensors").name.replace("pytorch_model", "model")
    return list(dict.fromkeys([safe, name.name]))
