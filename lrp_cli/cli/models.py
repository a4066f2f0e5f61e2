"""``lrp models``: which networks can be named."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lrp_cli.models import ModelEntry

COLUMNS = ("NAME", "WEIGHTS", "INPUT", "PARAMETERS", "CACHED", "CONFIG")
OTHERS = (
    "--model also takes timm:NAME for any classifier of timm ('lrp models timm:' lists them), "
    "and FILE.py:FUNCTION for a function of your own that returns a network."
)


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="FILTER",
            help="Part of a name, or a pattern with * and ? such as 'resnet*'; 'timm:' or a pattern that begins so "
            "lists timm's. [default: all, except timm's]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead.")] = False,
) -> None:
    """List the networks that --model takes by name.

    For each: the weights it has by default, the size of its input in pixels (height x width), how many parameters it
    has, whether the weights are on this machine already, and the preset that '--config auto' gives. What is not known
    is shown as '-'.

    Besides these names, --model takes timm:NAME for any classifier of timm (pip install 'lrp-cli[timm]'), and
    FILE.py:FUNCTION for a function of your own, called without arguments, that returns a torch.nn.Module. That file is
    imported and the function called, so its code is executed.
    """
    from lrp_cli.models import list_models

    entries = list_models(pattern)
    if as_json:
        for entry in entries:
            typer.echo(json.dumps(entry.to_json()))
        return
    rows = [_row(entry) for entry in entries]
    if sys.stdout.isatty():
        _print_table(rows)
    else:
        _print_aligned(rows)
    if pattern is None:
        typer.echo(OTHERS, err=True)


def _row(entry: "ModelEntry") -> tuple[str, ...]:
    return (
        entry.name,
        entry.weights or "-",
        "{} x {}".format(*entry.input_size) if entry.input_size else "-",
        f"{entry.parameters / 1e6:.1f}M" if entry.parameters else "-",
        "yes" if entry.cached else "no",
        entry.config or "-",
    )


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in COLUMNS:
        table.add_column(title, justify="right" if title == "PARAMETERS" else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def _print_aligned(rows: list[tuple[str, ...]]) -> None:
    lines = [COLUMNS, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    for line in lines:
        cells = (
            f"{cell:>{width}}" if title == "PARAMETERS" else f"{cell:<{width}}"
            for title, cell, width in zip(COLUMNS, line, widths, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())
