"""``lrp configs``: list, show and check rule configs."""

import json
from typing import Annotated

import typer

from lrp_cli import rulesets
from lrp_cli.errors import UsageError

app = typer.Typer(
    help="List the presets, show one, check a config of your own, or print the schema of configs.",
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def list_presets(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead.")] = False,
) -> None:
    """List the presets, or with a command: show one, check a config of your own, print the schema of configs."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise UsageError(f"--json goes with the list only, not with '{context.invoked_subcommand}'")
        return
    presets = rulesets.presets()
    if as_json:
        for preset in presets:
            record = {
                "name": preset.name,
                "description": preset.ruleset.description,
                "source": preset.ruleset.source,
                "attention": preset.ruleset.attention,
                "path": str(preset.path),
                "digest": preset.digest,
            }
            typer.echo(json.dumps(record))
        return
    width = max((len(preset.name) for preset in presets), default=0)
    for preset in presets:
        typer.echo(f"{preset.name:<{width}}  {preset.ruleset.description}")


@app.command("show")
def show(
    config: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Name of a preset, or path of a config file.")],
) -> None:
    """Print a config as it is written, comments included.

    Redirected into a file it is a good start for a config of your own.
    """
    typer.echo(rulesets.load(config).text, nl=False)


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of configs, for editors."""
    typer.echo(json.dumps(rulesets.json_schema(), indent=2, ensure_ascii=False))


@app.command("check")
def check(
    config: Annotated[str, typer.Argument(metavar="FILE", help="Path of a config file, or name of a preset.")],
) -> None:
    """Check a config, and say in one line what is wrong."""
    ruleset = rulesets.load(config).ruleset
    count = len(ruleset.layers)
    notes = [
        f"layers[{later}] never applies, layers[{earlier}] comes first" for later, earlier in rulesets.shadowed(ruleset)
    ]
    typer.echo("; ".join([f"{config}: valid, {count} {'entry' if count == 1 else 'entries'}", *notes]))
