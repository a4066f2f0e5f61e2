"""One call from names to a network that is ready to be explained."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrp_cli.errors import ModelError, closest
from lrp_cli.images.preprocessing import Preprocessing
from lrp_cli.models.architectures import Architecture
from lrp_cli.models.catalogue import DEFAULT_MODEL, find_architecture
from lrp_cli.models.checkpoints import SUFFIXES, StateDict, read_checkpoint
from lrp_cli.models.labels import IMAGENET_CLASSES, imagenet_labels, numbered_labels, read_labels
from lrp_cli.models.own_models import OwnArchitecture
from lrp_cli.models.randomised import enliven

RANDOM = "random"


@dataclass(frozen=True)
class LoadedModel:
    """A network and what is needed to feed it and to read its scores.

    Attributes:
        name: the model's name, such as ``resnet50``.
        weights: where the weights came from, for records: the published name, ``random(seed=0)``, or the file.
        network: in eval mode, float32, on the CPU; maps (N, 3, H, W) to scores of shape (N, classes).
        labels: the name of each class.
        preprocessing: how a picture becomes the network's input.
        file: the checkpoint that the user gave, if any.
        code: the user's own Python files that the network comes from; none where it is no such network.
    """

    name: str
    weights: str
    network: nn.Module
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    file: Path | None = None
    code: tuple[Path, ...] = ()


def load_model(
    name: str = DEFAULT_MODEL,
    weights: str | None = None,
    *,
    labels: Path | None = None,
    seed: int = 0,
    preprocessing: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> LoadedModel:
    """Build the model ``name`` and load its weights.

    Args:
        name: one of ``model_names()``; ``timm:NAME`` for a classifier of timm; or ``FILE.py:FUNCTION`` for a function
            of your own that returns a network: that file is imported and the function called, so its code is executed.
        weights: the name of published weights (None or ``default`` for the model's default), ``random``, or the path
            of a checkpoint, whose number of classes the model then takes over. A function of your own has the weights
            ``own``, which are those that its network comes with, and takes checkpoints that fit it.
        labels: a file with the names of the classes; without it they are those of the published weights, ImageNet's
            where there are 1000, or ``class 0``, ``class 1``, ...
        seed: for random weights; the caller's random numbers are left alone.
        preprocessing: fields of :class:`Preprocessing` to change, such as ``{"mean": (0, 0, 0)}``.
        progress: show a progress bar on stderr while downloading.

    Raises:
        ModelError: no such model or weights, they cannot be had, or they do not fit.
        UsageError: ``labels`` or ``preprocessing`` is wrong.
    """
    architecture = find_architecture(name)
    published, file = _choose_weights(architecture, weights)
    state: StateDict | None = None
    if file is not None:
        source, state = str(file), read_checkpoint(file)
    elif published is not None:
        source, state = published, _read_published(architecture, published, progress=progress)
    else:
        source = f"{RANDOM}(seed={seed})"
    with _seeded(seed):
        network = architecture.build(state, weights=published, source=source).float().cpu().eval()
        chosen = architecture.preprocessing(network, weights=published).override(preprocessing or {})
        if source.startswith(RANDOM):
            enliven(network, chosen.input_size or (224, 224))
    classes = architecture.count_classes(network, chosen)
    return LoadedModel(
        name=architecture.name,
        weights=source,
        network=network,
        labels=_labels(architecture, published, labels, classes),
        preprocessing=chosen,
        file=file,
        code=architecture.code if isinstance(architecture, OwnArchitecture) else (),
    )


def _choose_weights(architecture: Architecture, weights: str | None) -> tuple[str | None, Path | None]:
    """Return the name of the published weights, if it is any, and the file that the caller gave, if any."""
    names = architecture.weights_names
    if weights is None or weights.lower() == "default":
        if not names:
            raise ModelError(f"no weights are published for {architecture.name}; give --weights FILE or random")
        return names[0], None
    if weights.lower() == RANDOM:
        return None, None
    for published in names:
        if weights.upper() == published.upper():
            return published, None
    file = Path(weights).expanduser()
    if file.suffix.lower() in SUFFIXES or os.sep in weights or file.exists():
        return architecture.recognise(file), file
    choices = [*names, RANDOM]
    raise ModelError(
        f"unknown weights {weights!r} for {architecture.name}: give {', '.join(choices)}, "
        f"or a checkpoint ({', '.join(SUFFIXES)}){closest(weights, choices)}"
    )


def _read_published(architecture: Architecture, weights: str, *, progress: bool) -> StateDict | None:
    file = architecture.weights_file(weights, progress=progress)
    if file is None:
        return None
    try:
        return read_checkpoint(file)
    except ModelError as error:
        raise ModelError(f"weights {weights} of {architecture.name}: {error}; remove the file to get it anew") from None


def _labels(architecture: Architecture, published: str | None, file: Path | None, classes: int) -> tuple[str, ...]:
    if file is not None:
        return read_labels(file, classes)
    categories = architecture.categories(published)
    if len(categories) == classes:
        return categories
    return imagenet_labels() if classes == IMAGENET_CLASSES else numbered_labels(classes)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's random numbers and put them back after; the seeds of other devices are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
