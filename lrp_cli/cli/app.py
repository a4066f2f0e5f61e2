"""The ``lrp`` command and its subcommands. Imports no torch: ``lrp --help`` answers at once."""

from typing import Annotated

import typer

from lrp_cli import __version__
from lrp_cli.cli import configs
from lrp_cli.cli.explain import explain
from lrp_cli.cli.inspect import inspect
from lrp_cli.cli.models import models
from lrp_cli.cli.verify import verify

app = typer.Typer(
    name="lrp",
    help=(
        "Show where a neural network looks: Layer-wise Relevance Propagation from a class's score to the pixels.\n\n"
        "Start with: lrp explain PICTURE"
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lrp {__version__}")
        raise typer.Exit


@app.callback()
def lrp(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that come before the command."""


app.command("explain")(explain)
app.command("inspect")(inspect)
app.command("models")(models)
app.command("verify")(verify)
app.add_typer(configs.app, name="configs")
