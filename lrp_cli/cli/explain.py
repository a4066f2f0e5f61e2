"""``lrp explain``: heatmaps for pictures."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_cli.errors import UsageError, closest

if TYPE_CHECKING:
    from lrp_cli.models import LoadedModel
    from lrp_cli.runs.pipeline import Pipeline

KINDS = ("overlay", "heatmap", "panel", "npy")


class Interpolation(StrEnum):
    """How pictures are resized."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def explain(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATHS...", help="Pictures, and directories that hold pictures.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Any classification model of torchvision, by name.")
    ] = "efficientnet_lite0",
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            "-w",
            metavar="NAME|random|FILE",
            help="Published weights such as IMAGENET1K_V1, 'random', or a checkpoint (.safetensors, .pth). "
            "[default: the model's default]",
        ),
    ] = None,
    config: Annotated[
        str,
        typer.Option(
            "--config", "-c", metavar="NAME|FILE", help="Rule config: a preset ('lrp configs') or a YAML file."
        ),
    ] = "epsilon-gamma-box",
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            metavar="predicted|top:K|INDEX|NAME",
            help="Which class's score to explain; may be given several times. [default: predicted]",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory that outputs are written to.")] = Path("lrp-out"),
    save: Annotated[
        str, typer.Option("--save", "-s", help=f"What to write, separated by commas: {', '.join(KINDS)}.")
    ] = "overlay,npy",
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look in the folders of directories, too.")
    ] = False,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="Class names for --weights FILE: text or JSON.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option("--resize", min=1, help="Shorter side in pixels, in place of the model's own.")
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option("--crop", min=1, help="Side of the centre crop in pixels, in place of the model's own."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option("--mean", metavar="R,G,B", help="Channel means, in place of the model's own.")
    ] = None,
    std: Annotated[
        str | None, typer.Option("--std", metavar="R,G,B", help="Channel deviations, in place of the model's own.")
    ] = None,
    interpolation: Annotated[
        Interpolation | None, typer.Option("--interpolation", help="How to resize, in place of the model's own.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Pictures that go through the network at once.")
    ] = 8,
    device: Annotated[
        str, typer.Option("--device", help="Where the network runs: cpu, cuda, cuda:1, mps, or auto.")
    ] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="For --weights random.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line for each picture and target.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print errors only (and, with --json, the results).")
    ] = False,
) -> None:
    """Explain why pictures are classified as they are.

    For each picture and target, writes an overlay (the relevance in colour on the grey photograph) and the relevance
    itself, float32 of shape (3, height, width) in the coordinates of the model's input, into the directory --out.

    Exit codes: 0 all explained, 1 some pictures failed, 2 wrong usage, 3 no such model or weights, 4 invalid config,
    5 the model cannot be explained.
    """
    kinds = _kinds(save)
    changes = _preprocessing(resize, crop, mean, std, interpolation)

    from lrp_cli.cli.progress import Progress
    from lrp_cli.cli.report import Report, line
    from lrp_cli.images import find_images
    from lrp_cli.rulesets import load
    from lrp_cli.runs.naming import output_stems
    from lrp_cli.runs.records import Failure

    ruleset = load(config)
    found = find_images(paths, recursive=recursive)
    report = Report()
    progress = Progress(total=len(found.images), quiet=quiet)
    for path, reason in found.missing:
        report.add(Failure(path, f"{path}: {reason}"))
        progress.error(f"{path}: {reason}")
    if not found.images:
        raise UsageError("no pictures were found")

    from lrp_cli.models import load_model, parse_target

    loaded = load_model(model, weights, labels=labels, seed=seed, preprocessing=changes, progress=progress.is_shown)
    targets = tuple(parse_target(text, loaded.labels) for text in target or ["predicted"])
    pipeline = _pipeline(loaded, ruleset, targets, kinds, out, batch_size, device)
    stems = output_stems(found.images, [path for path in paths if path.is_dir()])
    with progress:
        for result in pipeline.run(stems):
            report.add(result)
            progress.advance(result)
            if isinstance(result, Failure):
                progress.error(result.reason)
            elif as_json:
                progress.result(json.dumps(result.to_json()))
            elif not quiet:
                progress.result(line(result))
    progress.summary(str(report))
    raise typer.Exit(report.exit_code)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(kind.strip().lower() for kind in text.split(",") if kind.strip()))
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"--save {kind!r}: choose from {', '.join(KINDS)}{closest(kind, KINDS)}")
    if not kinds:
        raise UsageError(f"--save names nothing to write: choose from {', '.join(KINDS)}")
    return kinds


def _preprocessing(
    resize: int | None, crop: int | None, mean: str | None, std: str | None, interpolation: Interpolation | None
) -> dict[str, Any]:
    """Return what of the model's preprocessing is to change."""
    given = {
        "resize": resize,
        "crop": crop,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "interpolation": interpolation and interpolation.value,
    }
    return {name: value for name, value in given.items() if value is not None}


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: give three numbers separated by commas") from None


def _pipeline(
    loaded: "LoadedModel",
    ruleset: Any,
    targets: tuple[Any, ...],
    kinds: tuple[str, ...],
    out: Path,
    batch_size: int,
    device: str,
) -> "Pipeline":
    from lrp_cli.explainer import Explainer
    from lrp_cli.runs.devices import choose_device
    from lrp_cli.runs.pipeline import Pipeline, Settings

    chosen = choose_device(device)
    explainer = Explainer(loaded.network.to(chosen), ruleset, bounds=loaded.preprocessing.bounds)
    return Pipeline(loaded, explainer, Settings(targets, kinds, out, batch_size, chosen))
