"""What a run does with each picture, and how that is recorded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lrp_cli import __version__
from lrp_cli.errors import UsageError
from lrp_cli.models import LoadedModel
from lrp_cli.rulesets import NamedRuleset
from lrp_cli.runs.files import sha256_of


@dataclass(frozen=True)
class Settings:
    """What to do with each picture.

    Attributes:
        targets: which scores to explain, as asked for.
        kinds: what to write.
        directory: where to.
        batch_size: how many pictures go through the network at once, at most; None: what suits the device
            (:mod:`lrp_cli.runs.batches`).
        device: where the network runs.
        seed: what the relevance starts with: "logit", "one" or "probability".
        on_unknown: what to do about operations without a rule: "error" or "gradient".
        products: type of the products on the way back, if it is not the network's.
        full: draw on the whole picture, not on the model's view.
        force: explain again what is recorded already.
    """

    targets: tuple[str, ...]
    kinds: tuple[str, ...]
    directory: Path
    batch_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: str = "logit"
    on_unknown: str = "error"
    products: torch.dtype | None = None
    full: bool = False
    force: bool = False


MAKERS = "device", "versions"
"""What may change the last digits."""

_DECISIVE = "weights_sha256", "code_sha256", "rules_sha256", "preprocessing", "on_unknown", "full", "dtype", "products"


class Provenance:
    """Where results come from: what every line of the manifest says, and a digest of what decides the outputs.

    Which kinds of outputs are written is no part of it: they show the same.
    """

    def __init__(self, model: LoadedModel, config: NamedRuleset, settings: Settings) -> None:
        parameter = next(model.network.parameters(), None)
        self.values: dict[str, Any] = {
            "weights_sha256": _digest_of_own_weights(model) if model.file is None else _digest_of_file(model.file),
            "code_sha256": _digest_of_files(model.code),
            "rules": config.resolved(),
            "rules_sha256": config.digest,
            "preprocessing": model.preprocessing.to_json(),
            "on_unknown": settings.on_unknown,
            "full": settings.full,
            "device": str(settings.device),
            "dtype": _name(parameter.dtype if parameter is not None else torch.get_default_dtype()),
            "products": None if settings.products is None else _name(settings.products),
            "versions": {"lrp": __version__, "torch": torch.__version__, "torchvision": _version("torchvision")},
        }
        self._targets = settings.targets
        self._decisive = {name: self.values[name] for name in _DECISIVE} | {
            "lrp": __version__,
            "model": model.name,
            "weights": model.weights if model.file is None else None,  # of a file, its contents decide
            "labels": _sha256("\n".join(model.labels)),
            "seed": settings.seed,
        }
        self._digest_for = lru_cache(maxsize=128)(self._digested)

    def digest(self, targets: Sequence[str] = ()) -> str:
        """Return the digest for a picture that is explained for ``targets``, or for those of the run."""
        return self._digest_for(tuple(targets or self._targets), self._decisive["full"])

    def digest_drawn_otherwise(self, targets: Sequence[str] = ()) -> str:
        """Return the digest for the same relevance, drawn on the other of the model's view and the picture."""
        return self._digest_for(tuple(targets or self._targets), not self._decisive["full"])

    def _digested(self, targets: tuple[str, ...], full: bool) -> str:
        return _sha256(json.dumps(self._decisive | {"targets": targets, "full": full}, sort_keys=True))[:16]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _digest_of_file(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error


def _digest_of_files(files: Sequence[Path]) -> str | None:
    """Return the digest of a file, or of several in their order; None of none."""
    digests = [_digest_of_file(file) for file in files]
    return _sha256(" ".join(digests)) if len(digests) > 1 else next(iter(digests), None)


def _digest_of_own_weights(model: LoadedModel) -> str | None:
    """Return a digest of parameters and buffers if they come from the user's own code, which may have them anywhere."""
    if not model.code:
        return None
    digest = hashlib.sha256()
    for name, tensor in chain(model.network.named_parameters(), model.network.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        dense = tensor.dequantize() if tensor.is_quantized else tensor.to_dense()
        digest.update(dense.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
