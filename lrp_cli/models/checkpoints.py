"""Weights on disk: read without running any code, and put into a network only if they fit it."""

import re
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lrp_cli.errors import ModelError, is_out_of_memory

StateDict = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# Where training scripts put the weights among other things, and what wrappers put before every key.
_NESTED_UNDER = ("state_dict", "model", "model_state_dict")
_WRAPPERS = ("module.", "_orig_mod.", "model.")
# A counter of training steps that evaluation never reads; old checkpoints lack it.
_COUNTER = "num_batches_tracked"


def read_checkpoint(path: Path) -> StateDict:
    """Read the tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file by name, onto the CPU.

    Weights nested under ``state_dict``, ``model`` or ``model_state_dict`` are found, and the prefixes of wrappers
    (``module.``, ``_orig_mod.``, ``model.``) are taken off where every key has them. Pickles are read by torch's
    restricted unpickler: a file that holds anything but tensors, plain values and the parsed arguments of a training
    script (an ``argparse.Namespace``) is refused, and runs nothing.

    Raises:
        ModelError: there is no such file, it is broken, or it is no checkpoint.
        MemoryError, RuntimeError, OSError: the memory has run out.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"{path}: not a checkpoint by its suffix (known are {', '.join(SUFFIXES)})")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ModelError(f"{path}: is empty (0 bytes)")
    except OSError as error:
        raise ModelError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    state = _find_tensors(content, path)
    stripped = _strip_wrappers(list(state))
    return state if stripped == list(state) else dict(zip(stripped, state.values(), strict=True))


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{path}: not a readable safetensors file ({_one_line(error)})") from None


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), _arguments_allowed():
            # Torch remarks on old pickle protocols and on archives of other kinds; the errors below say what matters.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise ModelError(f"{path}: not a checkpoint, or one that cannot be read without running code") from None
        raise ModelError(
            f"{path}: refused, for it asks for the Python object {refused[1]}, and reading that could run code; "
            "save the weights alone with torch.save(model.state_dict(), ...) or as safetensors"
        ) from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Broken archives fail in many ways inside torch.load: RuntimeError, EOFError, KeyError, OSError...
        if "TorchScript" in str(error):
            raise ModelError(f"{path}: a TorchScript archive, which is code; save the weights alone") from None
        raise ModelError(f"{path}: broken (cut short?), or not a checkpoint ({_one_line(error)})") from None


def _arguments_allowed() -> AbstractContextManager[None]:
    """Let the restricted unpickler read ``argparse.Namespace``, which training scripts save beside the weights.

    It is inert: only its attributes are filled in, and their values have to be plain in their turn.
    """
    if not hasattr(torch.serialization, "safe_globals"):  # torch < 2.5
        return nullcontext()
    return torch.serialization.safe_globals([Namespace])


def _find_tensors(content: Any, path: Path) -> StateDict:
    if isinstance(content, Mapping):
        for key in _NESTED_UNDER:
            if isinstance(content.get(key), Mapping):
                return _find_tensors(content[key], path)
        tensors = OrderedDict(
            (name, value) for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)
        )
        if tensors:
            # The versions of the modules that wrote the tensors; loading needs them to read older layouts.
            tensors._metadata = getattr(content, "_metadata", None)  # type: ignore[attr-defined]
            return tensors
    raise ModelError(f"{path}: holds no weights (a state dict, plain or under {', '.join(map(repr, _NESTED_UNDER))})")


def _strip_wrappers(keys: list[str]) -> list[str]:
    """Take off the prefixes of wrappers that all ``keys`` have."""
    for prefix in _WRAPPERS:
        if keys and all(key.startswith(prefix) for key in keys):
            return _strip_wrappers([key.removeprefix(prefix) for key in keys])
    return keys


def class_weight(network: nn.Module) -> str:
    """Return the key of the weight that makes the class scores, of shape (classes, ...): the last with a matrix shape.

    That is the final linear layer, or SqueezeNet's final convolution.
    """
    return [key for key, tensor in network.state_dict().items() if tensor.ndim >= 2][-1]


def count_classes(network: nn.Module) -> int:
    """Return how many classes ``network`` tells apart."""
    return int(network.state_dict()[class_weight(network)].shape[0])


def fit(network: nn.Module, state: StateDict, *, model: str, source: str) -> None:
    """Put the tensors of ``state`` into ``network``, all of them or none.

    Raises:
        ModelError: a tensor is missing, has another shape, or has no place; ``model`` and ``source`` name the two
            sides in the message.
    """
    expected = network.state_dict()
    # A network whose own names all begin like a wrapper's gets back what reading took off.
    names = list(expected)
    prefix = names[0].removesuffix(_strip_wrappers(names)[0]) if names and not state.keys() & expected.keys() else ""
    tensors = OrderedDict((prefix + key, tensor) for key, tensor in state.items())
    version = getattr(network, "_version", None)
    # Safetensors and renamed keys carry no version: assume today's.
    tensors._metadata = getattr(state, "_metadata", None) or {"": {"version": version}}  # type: ignore[attr-defined]
    try:
        result = network.load_state_dict(tensors, strict=False)
        missing, unexpected, misshapen = result.missing_keys, result.unexpected_keys, []
    except RuntimeError:
        missing = [key for key in expected if key not in tensors]
        unexpected = [key for key in tensors if key not in expected]
        misshapen = [
            f"{key} {tuple(tensors[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in tensors and tensors[key].shape != tensor.shape
        ]
    complaints = [
        _count("missing", (key for key in missing if not key.endswith(_COUNTER))),
        _count("unexpected", (key for key in unexpected if not key.endswith(_COUNTER))),
        _count("of another shape", misshapen),
    ]
    if any(complaints):
        raise ModelError(f"{source}: these weights do not fit {model}: {'; '.join(filter(None, complaints))}")


def _count(what: str, keys: Iterable[str]) -> str:
    listed = list(keys)
    if not listed:
        return ""
    return f"{len(listed)} {what} ({', '.join(listed[:3])}{', ...' if len(listed) > 3 else ''})"


def _one_line(error: Exception) -> str:
    """Return the first sentence of the message, after the kind of error where the message alone says little."""
    said = " ".join(str(error).split()).split(". ")[0]
    return said if " " in said else f"{type(error).__name__} {said}".strip()
