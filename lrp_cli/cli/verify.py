"""``lrp verify``: does an output directory hold what its manifest says?"""

import json
from pathlib import Path
from typing import Annotated

import typer

from lrp_cli.cli.text import counted, print_line, printable
from lrp_cli.errors import ExitCode


def verify(
    directory: Annotated[
        Path, typer.Argument(metavar="OUT", help="The output directory of a run.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each problem.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print problems only.")] = False,
) -> None:
    """Check an output directory against its manifest.

    Every output must be there with the size and hash that were recorded, every array must sum to the relevance that
    was recorded, the books must balance, and nothing else may lie there.

    Exit codes: 0 all as recorded, 1 something is not, 2 no manifest there.
    """
    from lrp_cli.runs.verify import Verification

    verification = Verification(directory)
    problems = 0
    for problem in verification.problems():
        problems += 1
        if as_json:
            print_line(json.dumps(problem.to_json()))
        else:
            print_line(printable(f"{problem.kind}: {problem.where}: {problem.what}"))
    if not (quiet or as_json):
        failed = f", {len(verification.failed)} failed when they were tried" if verification.failed else ""
        found = counted(problems, "problem") if problems else "all intact"
        typer.echo(f"{counted(len(verification.done), 'result')} recorded{failed}: {found}", err=True)
    raise typer.Exit(ExitCode.SOME_FAILED if problems else ExitCode.OK)
