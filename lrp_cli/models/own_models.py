"""A network from a Python file of the user's own, named ``FILE.py:FUNCTION``.

The file is imported and the function called. That is the user's own code, and it is executed like any Python program:
name only files that you would run.
"""

import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lrp_cli.errors import ModelError, closest, is_out_of_memory
from lrp_cli.images.preprocessing import Preprocessing
from lrp_cli.models.architectures import PublishedWeights
from lrp_cli.models.checkpoints import StateDict, fit

OWN_WEIGHTS = "own"

_LIBRARIES = frozenset(["site-packages", "dist-packages"])
"""Folders that Python installs into, which a home directory or a project may have below it."""

_STANDARD_LIBRARY = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
"""Where Python's own modules lie, in a home directory, too, with pyenv or conda."""


def find_own(model: str) -> "OwnArchitecture":
    """Return the architecture that ``FILE.py:FUNCTION`` names; nothing is executed yet.

    Raises:
        ModelError: there is no such file, or the function is not named.
    """
    path, _, function = model.rpartition(":") if re.search(r"\.py:", model, re.IGNORECASE) else (model, "", "")
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(f"{file}: {'is a directory' if file.is_dir() else 'no such file'}")
    if not function.strip():
        raise ModelError(f"{file}: name the function that returns the network: {file}:FUNCTION")
    return OwnArchitecture(model, file, function.strip())


@dataclass(frozen=True)
class OwnArchitecture:
    """A function of the user's own, called without arguments, that returns the network.

    Attributes:
        name: ``FILE.py:FUNCTION``, as given.
        file: the Python file.
        function: the function's name in it.
    """

    name: str
    file: Path
    function: str

    @property
    def weights_names(self) -> tuple[str, ...]:
        """The one name for the weights that the function gives the network."""
        return (OWN_WEIGHTS,)

    def weights_file(self, weights: str, *, progress: bool) -> None:
        """Return None: the weights are the function's business."""

    @property
    def code(self) -> tuple[Path, ...]:
        """The file, and what has been imported from its own directory so far, in order of their paths.

        Libraries below it, Python's, installed ones and this one, are no part of it.
        """
        folder = self.file.resolve().parent
        files = {self.file.resolve()}
        for name, module in [*sys.modules.items()]:
            path = vars(module).get("__file__") if isinstance(module, ModuleType) else None
            if isinstance(path, str) and path.startswith(f"{folder}{os.sep}") and path.endswith(".py"):
                parts = Path(path).relative_to(folder).parts
                is_installed = _LIBRARIES.intersection(parts) or path.startswith(_STANDARD_LIBRARY)
                if not is_installed and name.partition(".")[0] != "lrp_cli":
                    files.add(Path(path))
        return tuple(sorted(files))

    def describe(self, weights: str) -> PublishedWeights:
        """Return that nothing is known before the file is run."""
        return PublishedWeights(input_size=None, parameters=None, cached=True)

    def recognise(self, file: Path) -> str | None:
        """Return None: no weights are published."""
        return None

    def build(self, state: StateDict | None, *, weights: str | None, source: str) -> nn.Module:
        """Import the file, call the function, and put ``state``, if any, into the network it returns.

        What the code prints goes to stderr, because stdout is for results. The file's directory can be imported from
        until the function has returned.

        Raises:
            ModelError: the code fails, or what it returns is no network; or the weights do not fit, or are random.
        """
        if state is None and weights is None:
            raise ModelError(f"{self.name} makes its own weights: leave --weights out, or give a checkpoint")
        with _directory_on_path(self.file), redirect_stdout(sys.stderr):
            network = self._call(self._find(self._import()))
        if state is not None:
            fit(network, state, model=self.name, source=source)
        return network

    def preprocessing(self, network: nn.Module, *, weights: str | None) -> Preprocessing:
        """Return ImageNet's usual preprocessing; what differs is given by the user."""
        return Preprocessing(256, 224)

    def count_classes(self, network: nn.Module, preprocessing: Preprocessing) -> int:
        """Return how many scores ``network`` gives for a picture, by running it once on a grey one.

        Raises:
            ModelError: it fails on the picture, or gives anything else than scores.
        """
        height, width = preprocessing.input_size or (224, 224)
        try:
            with torch.no_grad():
                scores: Any = network(torch.zeros(1, 3, height, width))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{self.name}: the network fails on a picture of {height} x {width} pixels "
                f"({_said(error, self.file)}); --resize and --crop set the size"
            ) from None
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 1:
            given = f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else _kind(scores)
            raise ModelError(f"{self.name}: for 1 picture the network has to give scores of shape (1, N), not {given}")
        return scores.shape[1]

    def categories(self, weights: str | None) -> tuple[str, ...]:
        """Return nothing: the classes are the user's."""
        return ()

    def _import(self) -> ModuleType:
        """Import the file under a name that no other module has."""
        path = self.file.resolve()
        name = f"_lrp_own_{path.stem}_{sha256(str(path).encode()).hexdigest()[:12]}"
        spec: ModuleSpec | None = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ModelError(f"{self.file}: is not a Python file")
        module = importlib.util.module_from_spec(spec)
        # Dataclasses and type hints look their module up by its name.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            if is_out_of_memory(error):
                raise
            raise ModelError(f"{self.file}: cannot be imported ({_said(error, self.file)})") from None
        return module

    def _find(self, module: ModuleType) -> Callable[[], Any]:
        found: Any = getattr(module, self.function, None)
        if callable(found) and not isinstance(found, nn.Module):
            return found  # type: ignore[no-any-return]
        functions = [
            name
            for name, value in vars(module).items()
            if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        near = closest(self.function, functions, count=3) or (
            f"; it defines {', '.join(functions[:5])}" if functions else ""
        )
        if found is None:
            raise ModelError(f"{self.file}: has no function {self.function!r}{near}")
        raise ModelError(f"{self.file}: {self.function!r} is {_kind(found)}, not a function that returns a network")

    def _call(self, function: Callable[[], Any]) -> nn.Module:
        try:
            network = function()
        except (Exception, SystemExit) as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"{self.name} failed ({_said(error, self.file)})") from None
        if not isinstance(network, nn.Module):
            raise ModelError(f"{self.name} returned {_kind(network)}, not a torch.nn.Module")
        return network


@contextmanager
def _directory_on_path(file: Path) -> Iterator[None]:
    """Let the file import its neighbours, as it can where Python runs it as a script."""
    directory = str(file.resolve().parent)
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        if directory in sys.path:
            sys.path.remove(directory)


def _said(error: BaseException, file: Path) -> str:
    """Return the kind of the error, the last line of ``file`` that was running, and the message, in one line."""
    numbers = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == file.resolve() and frame.lineno is not None
    ]
    if isinstance(error, SyntaxError) and error.filename == str(file.resolve()) and error.lineno is not None:
        numbers, message = [error.lineno], error.msg
    else:
        message = str(error)
    where = f" in line {numbers[-1]}" if numbers else ""
    return f"{type(error).__name__}{where}: {' '.join(message.split())}".removesuffix(": ")


def _kind(value: object) -> str:
    """Return ``a str`` or ``an int`` for a value of that type, and ``None`` for None."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
