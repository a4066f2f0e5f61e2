"""Operations, time and memory of an explanation, as multiples of gradient times input on the same network and batch.

    python -m tests.benchmarks.speed                        everything (an hour or more)
    python -m tests.benchmarks.speed --networks vgg16 resnet50 --batches 1 --measure operations

Operations are counted by torch's FlopCounterMode: exact, and the same on every machine. Times are medians of runs that
take turns in one process, so that what else the machine does hits all alike, a new one for each network and batch; it
keeps the memory of tensors that are gone, as that of ``lrp explain`` does, which helps all. Memory is the peak of a
process that explains, above what it held before, each tensor in memory of its own: in the first explanation, in the
second one, which makes what is kept for later ones (large transformed weights), with that and without, and in a later
one. Other libraries are measured where they are installed (``pip install 'lrp-cli[peers]'``); "refuses" says that one
cannot explain a network.

``--device cuda`` does the same on a GPU: times include the wait until it is done, memory is what torch takes of its,
and products are as exact as single precision is, for all methods (torch would round the inputs of convolutions).

What commands take besides the network, :mod:`tests.benchmarks.commands` measures.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lrp_cli.engine.exactness import exactly
from lrp_cli.runs.memory import keep_freed_memory
from tests.benchmarks.methods import WARM, Method, methods, network

NETWORKS = ["vgg16", "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "convnext_tiny"]
NETWORKS += ["swin_t", "vit_b_16"]
BASELINE = "gradient x input"
EXPLANATIONS = ["the first explanation", "the second explanation", "the second explanation, less what it keeps"]
EXPLANATIONS += ["a later explanation"]
BY_ITSELF = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Has glibc give memory to larger tensors one by one, and take it back at once. Otherwise the peak depends on what fits
into the gaps between others, and differs by a quarter from one process to the next."""


class Operations(TorchDispatchMode):
    """Adds up the floating-point operations of what is executed, by the formulas of torch's FlopCounterMode.

    That mode itself also tracks modules, by hooks under which ReLUs in place fail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute an operation and count it."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _wanted(found: dict[str, Method], wanted: str) -> dict[str, Method]:
    return {name: run for name, run in found.items() if name == BASELINE or wanted in name}


def operations(name: str, batch: int, wanted: str, device: str) -> dict[str, float | str]:
    """Count floating-point operations of each method, as multiples of the baseline's."""
    counts: dict[str, float | str] = {}
    for method, run in _wanted(_methods(name, batch, device), wanted).items():
        try:
            _warm_up(method, run)  # weights are transformed once a model, not once an explanation
            with Operations() as counter:
                run()
            counts[method] = counter.total
        except Exception as error:
            counts[method] = f"refuses ({type(error).__name__})"
    return _relative(counts)


def times(name: str, batch: int, wanted: str, device: str, rounds: int) -> dict[str, float | str]:
    """Time the methods in a new process; return medians as multiples of the baseline's."""
    given = [name, str(batch), wanted, device, str(rounds)]
    command = [sys.executable, "-m", "tests.benchmarks.speed", "--times", *given]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return _relative(json.loads(done.stdout.splitlines()[-1]))  # a library may print, too


def medians(name: str, batch: int, wanted: str, device: str, rounds: int) -> dict[str, float | str]:
    """Time the methods in turn, and return medians in seconds."""
    keep_freed_memory()
    runs = _wanted(_methods(name, batch, device), wanted)
    taken: dict[str, list[float]] = {}
    for method, run in runs.items():
        try:
            _warm_up(method, run)
            taken[method] = []
        except Exception:  # noqa: S112 (said by the count of operations)
            continue
    for _ in range(rounds):
        for method, seconds in taken.items():
            _wait(device)
            start = time.perf_counter()
            runs[method]()
            _wait(device)
            seconds.append(time.perf_counter() - start)
    return {method: statistics.median(seconds) for method, seconds in taken.items()}


def _warm_up(method: str, run: Method) -> None:
    for _ in range(WARM if method.startswith("lrp") else 1):
        run()


def memory(name: str, batch: int, wanted: str, device: str) -> list[dict[str, float | str]]:
    """Measure each method's peak memory (:func:`peak`), on a processor in a process of its own."""
    found: list[dict[str, float | str]] = [{} for _ in EXPLANATIONS]
    for method in _wanted(_methods(name, 1, "cpu"), wanted):
        peaks = _peaks(name, batch, method) if device == "cpu" else peak(name, batch, method, device)
        for which in range(len(EXPLANATIONS)):
            found[which][method] = peaks[which] if peaks else "refuses"
    return [_relative(peaks) for peaks in found]


def _methods(name: str, batch: int, device: str, *, apart: bool = True) -> dict[str, Method]:
    return methods(name, network(name).to(device), torch.randn(batch, 3, 224, 224).to(device), apart=apart)


def _wait(device: str) -> None:
    """Wait until a GPU has done what it was told to."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def _peaks(name: str, batch: int, method: str) -> Sequence[float]:
    """Return what :func:`peak` measures in a new process; nothing if the method fails."""
    command = [sys.executable, "-m", "tests.benchmarks.speed", "--peak", name, str(batch), method]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | BY_ITSELF)
    return [float(word) for word in done.stdout.split()] if done.returncode == 0 else []


def peak(name: str, batch: int, method: str, device: str) -> tuple[float, ...]:
    """Return the growth of peak memory, this process's or a GPU's, by each of the EXPLANATIONS."""
    run = _methods(name, batch, device, apart=False)[method]
    held: list[float] = []
    growth: list[float] = []
    for _ in range(WARM + 1):
        _release(device)
        held.append(_peak(device))
        run()
        growth.append(_peak(device) - held[-1])
    kept = held[2] - held[1]
    return growth[0], growth[1], growth[1] - kept, growth[-1]


def _release(device: str) -> None:
    """Give freed memory back to the system and forget the peak so far (Linux; elsewhere the peak is an upper bound)."""
    import ctypes

    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak(device: str) -> float:
    """Return the peak so far in KiB; by getrusage, which counts in the parent's, only where there is no other way."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1024
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(status.split("VmHWM:")[1].split()[0])


def _relative(values: dict[str, float | str]) -> dict[str, float | str]:
    baseline = values[BASELINE]
    return {name: value if isinstance(value, str) else value / float(baseline) for name, value in values.items()}


def _table(title: str, results: dict[str, dict[str, float | str]]) -> None:
    names = list(dict.fromkeys(method for result in results.values() for method in result))
    print(f"\n## {title}, times gradient x input\n")
    print("| method | " + " | ".join(results) + " |")
    print("| --- |" + " ---: |" * len(results))
    for method in names:
        values = [result.get(method, "-") for result in results.values()]
        shown = [f"{value:.2f}" if isinstance(value, float) else str(value).split(" (")[0] for value in values]
        print(f"| {method} | " + " | ".join(shown) + " |", flush=True)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--methods", default="", metavar="TEXT", help="only methods whose name holds this, such as 'lrp'"
    )
    known = ["operations", "time", "memory"]
    parser.add_argument("--measure", nargs="+", choices=known, default=known)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a network and measurement, no tables"
    )
    parser.add_argument("--peak", nargs=3, metavar=("NETWORK", "BATCH", "METHOD"), help=argparse.SUPPRESS)
    parser.add_argument("--times", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(*peak(arguments.peak[0], int(arguments.peak[1]), arguments.peak[2], "cpu"))
        return
    if arguments.times:
        name, batch, wanted, device, rounds = arguments.times
        with exactly():
            print(json.dumps(medians(name, int(batch), wanted, device, int(rounds))))
        return
    measures: dict[str, Callable[[str, int, str, str], Sequence[dict[str, float | str]]]] = {
        "operations": lambda *what: [operations(*what)],
        "time": lambda *what: [times(*what, arguments.rounds)],
        "memory": memory,
    }
    titles = {"memory": [f"Peak memory of {which}" for which in EXPLANATIONS]}
    for what in arguments.measure:
        for batch in arguments.batches:
            tables: dict[str, dict[str, dict[str, float | str]]] = {}
            for name in arguments.networks:
                with exactly():
                    measured = measures[what](name, batch, arguments.methods, arguments.device)
                for title, results in zip(titles.get(what, [what.capitalize()]), measured, strict=True):
                    tables.setdefault(title, {})[name] = results
                    if arguments.json:
                        line = {"measure": title, "batch": batch, "network": name, "results": results}
                        print(json.dumps(line), flush=True)
            for title, by_network in tables.items():
                if not arguments.json:
                    _table(f"{title}, batch {batch}", by_network)


if __name__ == "__main__":
    main()
