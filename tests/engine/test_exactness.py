"""While an explanation is computed torch rounds no products; before and after it is set as its user set it."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrp_cli.engine.exactness import PER_OPERATION, exactly
from lrp_cli.explainer import Explainer

backends = torch.backends


def found() -> dict[str, Any]:
    """Return how torch is set, by all names that it has for it."""
    settings: dict[str, Any] = {}
    for name in (*PER_OPERATION, "cudnn", "mkldnn"):
        try:
            settings[name] = attrgetter(name)(backends).fp32_precision
        except AttributeError:
            continue
    older: dict[str, Callable[[], Any]] = {
        "matmul": torch.get_float32_matmul_precision,
        "cudnn.allow_tf32": lambda: backends.cudnn.allow_tf32,
        "cuda.matmul.allow_tf32": lambda: backends.cuda.matmul.allow_tf32,
    }
    for name, read in older.items():
        try:
            settings[name] = read()
        except RuntimeError:  # newer settings say what this one has no word for
            settings[name] = "mixed"
    return settings


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Set torch as it was, whatever a test did."""
    before = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    newer = {name: attrgetter(name)(backends).fp32_precision for name in PER_OPERATION if has_newer()}
    yield
    if has_newer():
        backends.fp32_precision = "none"
    torch.set_float32_matmul_precision(before[0])
    backends.cudnn.allow_tf32 = before[1]
    for name, value in newer.items():
        attrgetter(name)(backends).fp32_precision = value


def has_newer() -> bool:
    """Whether torch has a precision for each kind of operation."""
    return hasattr(backends.cudnn, "conv")


newer = pytest.mark.skipif(not has_newer(), reason="this torch has no precision for each kind of operation")


def untouched() -> None:
    pass


def older() -> None:
    torch.set_float32_matmul_precision("medium")
    backends.cudnn.allow_tf32 = True


def newest() -> None:
    backends.cudnn.conv.fp32_precision = "tf32"
    backends.cuda.matmul.fp32_precision = "tf32"
    backends.mkldnn.conv.fp32_precision = "bf16"


def mixed() -> None:
    torch.set_float32_matmul_precision("high")
    backends.cudnn.rnn.fp32_precision = "ieee"


def everywhere() -> None:
    backends.fp32_precision = "tf32"


SET = [untouched, older, *(pytest.param(each, marks=newer) for each in (newest, mixed, everywhere))]


@pytest.mark.parametrize("set_torch", SET)
def test_products_are_exact_meanwhile_and_as_set_afterwards(set_torch: Callable[[], None]) -> None:
    set_torch()
    before = found()
    with exactly():
        within = found()
        with exactly():
            assert found() == within
        assert found() == within
    assert found() == before
    assert within["matmul"] in ("highest", "mixed")
    assert within["cuda.matmul.allow_tf32"] in (False, "mixed")
    assert within["cudnn.allow_tf32"] in (False, "mixed")
    assert all(within[name] == "ieee" for name in PER_OPERATION if name in within)


def test_the_last_of_several_threads_sets_torch_as_it_was() -> None:
    older()
    before = found()
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with exactly():
            inside.set()
            leave.wait()

    with exactly():
        thread = threading.Thread(target=work)
        thread.start()
        inside.wait()
    within = found()
    leave.set()
    thread.join()
    assert within["matmul"] == "highest"
    assert found() == before


class Asking(nn.Module):
    """Notes how torch is set when it is run, and when relevance comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)
        self.noted: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.noted.append(torch.get_float32_matmul_precision())
        y = self.linear(x.flatten(1))
        y.register_hook(lambda _: self.noted.append(torch.get_float32_matmul_precision()))
        return y


@pytest.mark.parametrize("several", [False, True])
def test_explanations_are_computed_exactly(several: bool) -> None:
    torch.set_float32_matmul_precision("medium")
    model, x = Asking().eval(), torch.rand(2, 3, 2, 2)
    explainer = Explainer(model, "epsilon")
    if several:
        explainer.forward(x).explain(1)
    else:
        explainer.explain(x, 1)
    assert set(model.noted) == {"highest"}
    assert torch.get_float32_matmul_precision() == "medium"


def test_an_error_leaves_torch_as_it_was() -> None:
    torch.set_float32_matmul_precision("medium")
    model = Asking()  # in training mode
    with pytest.raises(Exception, match="training mode"):
        Explainer(model, "epsilon").explain(torch.rand(2, 3, 2, 2))
    assert torch.get_float32_matmul_precision() == "medium"


def test_torch_that_may_not_be_set_is_left_as_it_is() -> None:
    program = (
        "import torch; from torch import nn; from lrp_cli.explainer import Explainer\n"
        "torch.backends.disable_global_flags()\n"
        "model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()\n"
        "print(Explainer(model, 'epsilon').explain(torch.rand(2, 3, 2, 2)).relevance.shape)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("torch.Size([2, 3, 2, 2])\n", "")
