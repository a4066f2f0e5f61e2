"""What a command takes besides the network: until it starts, and for a folder of pictures.

    python -m tests.benchmarks.commands                         both (some minutes)
    python -m tests.benchmarks.commands --measure start

Everything printed is a ratio of medians of runs that take turns, so that what else the machine does hits all alike.

Start: whole processes. ``lrp --help`` against ``python -c "import typer"``, and one picture through the default model,
overlay and relevance written, against ``python -c "import torch, torchvision"``.

Folder: throughput, pictures a second, without the start of the process. Pictures made from the samples are explained
by a run as ``lrp explain FOLDER`` does it (found, hashed, decoded, preprocessed, explained, rendered, written and
recorded), and by the engine alone on the same batches, which lie ready as tensors; in one process, with as many threads
and pictures at once, and memory and waiting threads treated alike. 1.00 would say that all but the network comes for
nothing.
"""

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps

from lrp_cli.runs.spinning import spin_briefly

spin_briefly()  # as `lrp explain` does, before torch is imported

SAMPLES = Path(__file__).resolve().parents[2] / "sample_images"
SIZE = (500, 375)
"""Width and height of the pictures in the folder, which are about those of ImageNet's."""


def start(rounds: int) -> dict[str, float]:
    """Compare whole processes with the imports that they are measured by."""
    with TemporaryDirectory() as directory:
        commands = {
            "typer": ["-c", "import typer"],
            "help": ["-m", "lrp_cli", "--help"],
            "torch": ["-c", "import torch, torchvision"],
            "explain": ["-m", "lrp_cli", "explain", str(SAMPLES / "cat.jpg"), "-o", directory, "--force", "--quiet"],
        }
        seconds = in_turn(
            {name: lambda command=command: _python(*command) for name, command in commands.items()}, rounds
        )
    return {
        "time of `lrp --help` / of `import typer`": seconds["help"] / seconds["typer"],
        "time of `lrp explain cat.jpg` / of `import torch, torchvision`": seconds["explain"] / seconds["torch"],
    }


def folder(pictures: int, batch_size: int, rounds: int, device: str) -> dict[str, float]:
    """Compare a run over a folder with the engine alone on the same batches; each round takes other pictures."""
    import torch

    from lrp_cli import Explainer
    from lrp_cli.engine import library
    from lrp_cli.images import decode, find_images
    from lrp_cli.models import load_model
    from lrp_cli.runs.memory import keep_freed_memory
    from lrp_cli.runs.naming import output_stems
    from lrp_cli.runs.pictures import Picture
    from lrp_cli.runs.session import Session
    from lrp_cli.runs.settings import Settings

    keep_freed_memory()
    model = load_model()
    explainer = Explainer(model.network.to(device), "auto", bounds=model.preprocessing.bounds)
    with TemporaryDirectory() as directory:
        parts = [Path(directory, f"pictures{number}") for number in range(rounds + 1)]
        make_pictures(parts, pictures)

        def pictures_of(part: Path) -> Sequence[Path]:
            return find_images([part], recursive=False).images

        def run(part: Path) -> None:
            settings = Settings(
                targets=("predicted",),
                kinds=("overlay", "npy"),
                directory=Path(directory, "out", part.name),
                batch_size=batch_size,
                device=torch.device(device),
            )
            found = pictures_of(part)
            stems = output_stems(found, [parts[0].parent])
            session = Session(model, explainer, settings)
            session.run([Picture(path, stems[path]) for path in found], lambda _: None, print)

        def prepare(part: Path) -> list[torch.Tensor]:
            steps = model.preprocessing
            tensors = [steps.tensor(steps.view(decode(path))) for path in pictures_of(part)]
            return [torch.stack(tensors[first : first + batch_size]) for first in range(0, len(tensors), batch_size)]

        # What is prepared once a model.
        first, *others = parts
        run(first)
        for _ in range(library.AFTER + 3):
            explainer.explain(prepare(first)[0].to(device))
        batches = iter([prepare(part) for part in others])
        unwritten = iter(others)
        seconds = in_turn(
            {
                "engine": lambda: [explainer.explain(x.to(device)).relevance.cpu() for x in next(batches)],
                "folder": lambda: run(next(unwritten)),
            },
            rounds,
        )
    return {
        f"throughput of a folder, {batch_size} at once / of the engine alone": seconds["engine"] / seconds["folder"]
    }


def make_pictures(folders: list[Path], count: int) -> None:
    """Fill each folder with so many JPEG files, all different: parts of the sample pictures, some of them mirrored."""
    draw = random.Random(0)
    originals = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.[jp][pn]g"))]
    places = [folder for folder in folders for _ in range(count)]
    for number, (target, original) in enumerate(zip(places, itertools.cycle(originals), strict=False)):
        share = draw.uniform(0.5, 1.0)
        width, height = round(share * original.width), round(share * original.height)
        left, top = draw.randint(0, original.width - width), draw.randint(0, original.height - height)
        picture = original.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        target.mkdir(exist_ok=True)
        (ImageOps.mirror(picture) if draw.random() < 0.5 else picture).save(target / f"{number:05}.jpg", quality=90)


def in_turn(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run each once a round, in an order that turns with the round; returns the median of the seconds each took."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(runs):
            begun = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="+", choices=["start", "folder"], default=["start", "folder"])
    parser.add_argument("--rounds", type=int, default=10, help="of the folder five at most")
    parser.add_argument("--pictures", type=int, default=200, help="in a folder; each round takes another folder")
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--device", default="cpu", help="for the folder: cpu, or cuda")
    arguments = parser.parse_args()
    print("| ratio of medians | |")
    print("| --- | ---: |")
    ratios = start(arguments.rounds) if "start" in arguments.measure else {}
    if "folder" in arguments.measure:
        for batch_size in arguments.batches:
            ratios |= folder(arguments.pictures, batch_size, min(arguments.rounds, 5), arguments.device)
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
