"""Layer-wise Relevance Propagation for PyTorch image classifiers: a command-line tool and a small Python API.

``from lrp_cli import Explainer`` is the Python API. Importing ``lrp_cli`` itself imports neither torch nor matplotlib,
so that ``lrp --help`` answers at once; the public names are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrp_cli.explainer import Explainer, Explanation
    from lrp_cli.runs.reading import load_run

__version__ = "0.1.0"
__all__ = ["Explainer", "Explanation", "__version__", "load_run"]


def __getattr__(name: str) -> Any:
    if name in {"Explainer", "Explanation"}:
        return getattr(import_module("lrp_cli.explainer"), name)
    if name == "load_run":
        return import_module("lrp_cli.runs.reading").load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
