"""``lrp inspect``: what happens to the relevance, operation by operation."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_cli.cli import options
from lrp_cli.cli.parsing import check_random_seed, load_config, parse_preprocessing, parse_threads
from lrp_cli.errors import LrpError, UsageError, is_out_of_memory, model_failure

if TYPE_CHECKING:
    from torch import Tensor

    from lrp_cli.inspection import Inspection, Row
    from lrp_cli.models import LoadedModel


def inspect(
    image: Annotated[
        Path | None, typer.Argument(metavar="[PICTURE]", help="A picture. [default: random pixels]")
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="As for 'lrp explain'.")] = "efficientnet_lite0",
    weights: Annotated[
        str | None, typer.Option("--weights", "-w", metavar="NAME|random|FILE", help="As for 'lrp explain'.")
    ] = None,
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="auto|NAME|FILE", help="As for 'lrp explain'.")
    ] = "auto",
    target: Annotated[
        str, typer.Option("--target", "-t", metavar="predicted|INDEX|NAME", help="The class to explain.")
    ] = "predicted",
    labels: Annotated[Path | None, typer.Option("--labels", metavar="FILE", help="As for 'lrp explain'.")] = None,
    fit: options.FitTo = options.Fit.CROP,
    resize: options.Resize = None,
    crop: options.Crop = None,
    mean: options.Mean = None,
    std: options.Std = None,
    interpolation: options.HowToResize = None,
    random_seed: Annotated[int, typer.Option("--random-seed", help="For random weights and pixels.")] = 0,
    dtype: options.DType = options.Precision.FLOAT32,
    on_unknown: options.Unknown = options.OnUnknown.ERROR,
    threads: options.Threads = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show shape operations and sums, too, which only pass relevance on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every operation.")] = False,
) -> None:
    """Show what every operation of a network does with the relevance of one picture.

    One line an operation, in order of execution: the rule and why it was chosen, the relevance that comes in from
    above, what is absorbed (by biases, stabilisers, constants), and what goes out. The last line holds the books:
    score = relevance at the pixels + absorbed.
    """
    changes = parse_preprocessing(fit, resize, crop, mean, std, interpolation)
    thread_count = parse_threads(threads)
    check_random_seed(random_seed)
    ruleset = load_config(config)

    from lrp_cli.explainer import Explainer
    from lrp_cli.inspection import inspect as inspect_sample
    from lrp_cli.models import load_model
    from lrp_cli.runs.devices import use_precision, use_threads

    use_threads(thread_count)
    loaded = load_model(model, weights, labels=labels, seed=random_seed, preprocessing=changes)
    index = _target(target, loaded)
    x = _sample(image, loaded, random_seed)
    products = use_precision(loaded.network, dtype.value)
    x = x.double() if dtype is options.Precision.FLOAT64 else x
    explainer = Explainer(
        loaded.network,
        ruleset,
        bounds=loaded.preprocessing.bounds,
        on_unknown=on_unknown.value,
        products=products,
    )
    try:
        inspection = inspect_sample(explainer, x, index)
    except Exception as error:
        if isinstance(error, LrpError) or is_out_of_memory(error):
            raise
        raise model_failure(error) from error
    summary = _summary(inspection, loaded, explainer.config.name, image)
    if as_json:
        typer.echo(json.dumps(summary | {"operations": [row.to_json() for row in inspection.rows]}))
    else:
        _print_table(inspection, summary, everything=everything)


def _target(text: str, loaded: "LoadedModel") -> int | None:
    from lrp_cli.models import ClassIndex, Predicted, parse_target

    target = parse_target(text, loaded.labels)
    if isinstance(target, Predicted):
        return None
    if isinstance(target, ClassIndex):
        return target.index
    raise UsageError(f"--target {text!r}: lrp inspect looks at one class; give predicted, an index or a name")


def _sample(image: Path | None, loaded: "LoadedModel", seed: int) -> "Tensor":
    """Return the input, shape (1, 3, H, W): a picture, or random pixels within the range of pictures."""
    import torch

    from lrp_cli.images import decode

    preprocessing = loaded.preprocessing
    if image is not None:
        return preprocessing.tensor(preprocessing.view(decode(image)))[None]
    height, width = preprocessing.input_size or (224, 224)
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    low, high = (torch.tensor(end).view(3, 1, 1) for end in preprocessing.bounds)
    return low + (high - low) * pixels


def _summary(inspection: "Inspection", loaded: "LoadedModel", config: str, image: Path | None) -> dict[str, Any]:
    explanation = inspection.explanation
    target = int(explanation.target[0]) if explanation.target is not None else None
    return {
        "image": None if image is None else str(image),
        "model": loaded.name,
        "weights": loaded.weights,
        "config": config,
        "target": target,
        "label": None if target is None else loaded.labels[target],
        "score": explanation.scores[0].item(),
        "relevance_sum": explanation.relevance_sum[0].item(),
        "absorbed_sum": explanation.absorbed_sum[0].item(),
        "books_error": inspection.books_error,
        "amplification": inspection.amplification,
    }


def _print_table(inspection: "Inspection", summary: dict[str, Any], *, everything: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from lrp_cli.inspection import notable

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=160)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("#", "layer", "operation", "rule", "because", "output"):
        table.add_column(column, overflow="fold")
    for column in ("in", "absorbed", "out"):
        table.add_column(column, justify="right", no_wrap=column != "absorbed")
    for row in inspection.rows if everything else notable(inspection.rows):
        table.add_row(*_cells(row))
    console.print(table)
    console.print(
        f"\n{summary['model']}, {summary['config']}: score {summary['score']:.6g} of {summary['label']!r} = "
        f"{summary['relevance_sum']:.6g} at the pixels + {summary['absorbed_sum']:.6g} absorbed, "
        f"books off by {summary['books_error']:.1e}; sum of |relevance| at the pixels: "
        f"{summary['amplification']:.3g} times the score",
        soft_wrap=True,
    )


def _cells(row: "Row") -> tuple[str, ...]:
    absorbed = ", ".join(f"{kind} {value:.3g}" for kind, value in row.absorbed.items() if value)
    shape = "x".join(str(size) for size in row.shape[1:])
    amounts = (f"{row.relevance_in:.4g}", absorbed, f"{row.relevance_out:.4g}")
    return (str(row.number), row.layer, row.operation, row.rule, row.reason, shape, *amounts)
