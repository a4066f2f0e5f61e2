"""What it is worth to compile explanations, and what it costs (``--compile``).

    python -m tests.benchmarks.compiled --networks mobilenet_v2 --presets epsilon        (a minute or two)
    python -m tests.benchmarks.compiled                                                 (an hour)

For each network and preset: the time of an explanation by a program, and of a compiled one, as multiples of gradient
times input, medians of runs that take turns in one process; and after how many explanations of inputs of one shape the
time that compiling took is saved, where torch had nothing of it in its cache.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
from torch import nn

from lrp_cli import Explainer
from lrp_cli.engine import library, native
from lrp_cli.models import load_model
from lrp_cli.models.catalogue import DEFAULT_MODEL
from lrp_cli.runs.memory import keep_freed_memory
from tests.benchmarks.methods import BOUNDS, WARM, gradient_times_input, network
from tests.benchmarks.speed import NETWORKS

PRESETS = ["epsilon", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1-flat"]


def measure(net: nn.Module, preset: str, batch: int, rounds: int) -> tuple[float, float, float]:
    """Return the times of an explanation and of a compiled one, and how many of them compiling takes to pay."""
    x = torch.randn(batch, 3, 224, 224)
    target = net(x).argmax(dim=1)
    plain, compiled = (Explainer(net, preset, bounds=BOUNDS, compile=compile) for compile in (False, True))
    for _ in range(WARM):
        plain.explain(x, target)
    longest = max(_seconds(lambda: compiled.explain(x, target)) for _ in range(WARM))
    if compiled.compiler is None or compiled.compiler.problem is not None:
        raise SystemExit(f"{preset}: {compiled.compiler and compiled.compiler.report}")
    runs: dict[str, Callable[[], object]] = {
        "gradient": lambda: gradient_times_input(net, x, target),
        "plain": lambda: plain.explain(x, target),
        "compiled": lambda: compiled.explain(x, target),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            taken[name].append(_seconds(run))
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    saved = median["plain"] - median["compiled"]
    pays = longest / saved if saved > 0 else float("inf")
    return median["plain"] / median["gradient"], median["compiled"] / median["gradient"], pays


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[DEFAULT_MODEL, *NETWORKS])
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    keep_freed_memory()
    library.AFTER, native.PATIENCE = 1, 0  # the inputs are the same each time: there is nothing to wait for
    print("| network | preset | by a program | compiled | pays after |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name in arguments.networks:
        net = load_model(name).network if name == DEFAULT_MODEL else network(name)
        for preset in arguments.presets:
            with TemporaryDirectory() as cache:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
                plain, compiled, pays = measure(net, preset, arguments.batch, arguments.rounds)
            print(f"| {name} | {preset} | {plain:.2f} | {compiled:.2f} | {pays:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
