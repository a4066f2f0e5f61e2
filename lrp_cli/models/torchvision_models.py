"""torchvision's classification models by name, with torchvision's weights, one's own, or random ones."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights  # type: ignore[attr-defined]

from lrp_cli.errors import ModelError
from lrp_cli.images.preprocessing import Preprocessing
from lrp_cli.models.catalogue import DEFAULT_MODEL
from lrp_cli.models.checkpoints import StateDict, class_weight, fit
from lrp_cli.models.labels import imagenet_labels

IMAGENET_CLASSES = 1000
# Seconds without an answer after which a download is given up; a network that drops packets never answers.
TIMEOUT = 30.0
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

    def recognise(self, file: Path) -> str | None:
        """Return the weights that torchvision publishes under the name of ``file``."""
        for member in get_model_weights(self.name):
            if _file_name(member.url) == file.name:
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


def cached_file(url: str) -> Path:
    """Return where torch caches the download of ``url``, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _file_name(url)


def download(url: str, *, progress: bool, what: str) -> Path:
    """Return the cached file of ``url``, downloaded first where absent.

    The download is written beside its place and moved there only when it is complete and has the hash in its name.

    Raises:
        ModelError: it could not be downloaded or written.
    """
    path = cached_file(url)
    if path.exists():
        return path
    expected = torch.hub.HASH_REGEX.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _timeout(TIMEOUT):
            torch.hub.download_url_to_file(url, str(path), expected[1] if expected else None, progress=progress)
    except (OSError, HTTPException, RuntimeError) as error:
        raise ModelError(
            f"{what} could not be downloaded from {url} ({_reason(error)}); it would be cached at {path}. Without a "
            f"network, give --weights FILE, or leave --model out for {DEFAULT_MODEL}, whose weights are installed"
        ) from None
    return path


def _file_name(url: str) -> str:
    return Path(urlsplit(url).path).name


def _reason(error: Exception) -> str:
    said = getattr(error, "reason", None) or error
    return " ".join(str(said).split()) or type(error).__name__


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
