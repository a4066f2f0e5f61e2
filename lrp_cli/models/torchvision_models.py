"""torchvision's classification models by name, with torchvision's weights, one's own, or random ones."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights  # type: ignore[attr-defined]

from lrp_cli.images.preprocessing import Preprocessing
from lrp_cli.models.architectures import PublishedWeights
from lrp_cli.models.checkpoints import StateDict, class_weight, count_classes, fit
from lrp_cli.models.downloads import cached_file, download, file_name
from lrp_cli.models.labels import imagenet_labels

# Heads that only training uses: evaluation ignores them, so they are not built.
_AUXILIARY_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# torchvision's DenseNet files spell `norm1` as `norm.1`, from before names with dots were forbidden.
_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class TorchvisionArchitecture:
    """A model that torchvision builds by name."""

    name: str

    @property
    def weights_names(self) -> tuple[str, ...]:
        """The members of the model's weights enum, torchvision's default first."""
        enum = get_model_weights(self.name)
        default = getattr(enum, "DEFAULT", None)
        return tuple(sorted((member.name for member in enum), key=lambda name: default is None or name != default.name))

    def weights_file(self, weights: str, *, progress: bool) -> Path:
        """Return the published weights in torch's cache, downloaded and checked against their hash where absent."""
        return download(self._member(weights).url, progress=progress, what=f"weights {weights} of {self.name}")

    def describe(self, weights: str) -> PublishedWeights:
        """Return what torchvision says about ``weights``."""
        member = self._member(weights)
        return PublishedWeights(
            input_size=Preprocessing.from_transforms(member.transforms()).input_size,
            parameters=member.meta.get("num_params"),
            cached=cached_file(member.url).exists(),
        )

    def recognise(self, file: Path) -> str | None:
        """Return the weights that torchvision publishes under the name of ``file``."""
        for member in get_model_weights(self.name):
            if file_name(member.url) == file.name:
                return str(member.name)
        return None

    def build(self, state: StateDict | None, *, weights: str | None, source: str) -> nn.Module:
        """Build the network as torchvision does for these weights, with as many classes as ``state`` has.

        torchvision's own GoogLeNet and Inception weights expect inputs normalised to -1..1 and convert to that inside
        (``transform_input``). Weights of one's own cannot say whether they do; they get no conversion, and where they
        need it, ``mean`` and ``std`` of 0.5 are the same.
        """
        options: dict[str, Any] = {}
        if self.name in _AUXILIARY_HEADS:
            options = {"aux_logits": False, "transform_input": weights is not None, "init_weights": state is None}
        if state is None:
            return self._construct(**options)
        state = self._today(state)
        sketch = self._sketch()
        scores = state.get(class_weight(sketch))
        if scores is not None and scores.ndim >= 2:
            options["num_classes"] = scores.shape[0]
        positions = state.get("encoder.pos_embedding")
        if hasattr(sketch, "patch_size") and positions is not None and positions.ndim == 3:
            # One position for each patch of the square picture, and one for the class token.
            options["image_size"] = round((positions.shape[1] - 1) ** 0.5) * sketch.patch_size
        network = self._construct(**options)
        fit(network, state, model=self.name, source=source)
        return network

    def preprocessing(self, network: nn.Module, *, weights: str | None) -> Preprocessing:
        """Return the preset of ``weights``; without any, the first of the model's presets that fits its input size."""
        presets = {
            member.name: Preprocessing.from_transforms(member.transforms()) for member in get_model_weights(self.name)
        }
        if weights is not None:
            return presets[weights]
        usual = next(iter(presets.values()), Preprocessing(256, 224))
        size = getattr(network, "image_size", None)
        if size is None:
            return usual
        fitting = (preset for preset in presets.values() if preset.crop == size)
        return next(fitting, usual.override({"resize": size, "crop": size}))

    def count_classes(self, network: nn.Module, preprocessing: Preprocessing) -> int:
        """Return how many scores the final layer gives."""
        return count_classes(network)

    def categories(self, weights: str | None) -> tuple[str, ...]:
        """Return the class names that come with ``weights``."""
        return imagenet_labels() if weights is None else tuple(self._member(weights).meta["categories"])

    def _member(self, weights: str) -> WeightsEnum:
        return get_model_weights(self.name)[weights]

    def _construct(self, **options: Any) -> nn.Module:
        network: nn.Module = get_model(self.name, weights=None, **options)
        return network

    def _sketch(self) -> nn.Module:
        """Build the network without memory for its weights, to learn names and shapes (RegNets need a real one)."""
        try:
            with torch.device("meta"):
                return self._construct(**({"init_weights": False} if self.name in _AUXILIARY_HEADS else {}))
        except RuntimeError:
            return self._construct()

    def _today(self, state: StateDict) -> StateDict:
        """Rename the keys of old files, and leave out the heads that only training uses."""
        unused = _AUXILIARY_HEADS.get(self.name, ())
        renamed = {
            _OLD_DENSENET_KEY.sub(r"\1\2", key): tensor for key, tensor in state.items() if not key.startswith(unused)
        }
        return state if renamed.keys() == state.keys() else renamed
