"""What a source of models has to provide, so that loading is the same for all of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from lrp_cli.images.preprocessing import Preprocessing
from lrp_cli.models.checkpoints import StateDict


@dataclass(frozen=True)
class PublishedWeights:
    """What is known about published weights before they are loaded.

    Attributes:
        input_size: (height, width) of the model input in pixels, or None where it depends on the picture.
        parameters: how many numbers the network learned, or None where nobody says.
        cached: whether loading them needs no download.
    """

    input_size: tuple[int, int] | None
    parameters: int | None
    cached: bool


class Architecture(Protocol):
    """A kind of network that can be built, and the weights published for it."""

    @property
    def name(self) -> str:
        """The name that ``load_model`` takes."""

    @property
    def weights_names(self) -> tuple[str, ...]:
        """The names of the published weights, the default first."""

    def weights_file(self, weights: str, *, progress: bool) -> Path | None:
        """Return the file with the published ``weights``, downloaded where it has to be.

        None says that there is no file, because the network is built with them.

        Raises:
            ModelError: it cannot be had.
        """

    def describe(self, weights: str) -> PublishedWeights:
        """Return what is known about the published ``weights`` without building or downloading anything."""

    def recognise(self, file: Path) -> str | None:
        """Return which published weights ``file`` holds, going by its name, or None for weights of one's own."""

    def build(self, state: StateDict | None, *, weights: str | None, source: str) -> nn.Module:
        """Build the network with the weights in ``state``, or random ones for None.

        The number of classes follows ``state``. ``weights`` names the published weights that ``state`` holds, if any;
        ``source`` names where it came from, for messages.

        Raises:
            ModelError: the weights do not fit, or random ones cannot be had.
        """

    def preprocessing(self, network: nn.Module, *, weights: str | None) -> Preprocessing:
        """Return the preprocessing that the published ``weights`` were made for, or for None the usual one."""

    def count_classes(self, network: nn.Module, preprocessing: Preprocessing) -> int:
        """Return how many classes ``network``, fed by ``preprocessing``, tells apart.

        Raises:
            ModelError: it does not give class scores.
        """

    def categories(self, weights: str | None) -> tuple[str, ...]:
        """Return the class names of the published ``weights``, or for None the usual ones; empty where unknown."""
