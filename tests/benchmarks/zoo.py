"""The books of torchvision's whole zoo: every classification model, random weights, the preset of ``--config auto``.

    python -m tests.benchmarks.zoo [NAME ...]

For each model the score is explained as ``lrp inspect --model NAME --weights random`` does, in float32, and a line
printed: how far the books are off, and how large the relevance of the pixels is, both in proportion to the score. A
second table sums that up by family.
"""

import json
import sys
from dataclasses import dataclass

from lrp_cli.models import model_names
from tests.benchmarks.command import lrp

FAMILIES = (
    *("alexnet", "convnext", "densenet", "efficientnet_v2", "efficientnet", "googlenet", "inception", "maxvit"),
    *("mnasnet", "mobilenet", "regnet", "resnext", "wide_resnet", "resnet", "shufflenet", "squeezenet", "swin_v2"),
    *("swin", "vgg", "vit"),
)
"""What the names of a family's models begin with; the first that fits."""


@dataclass(frozen=True)
class Row:
    """What was found for a model: its name, the preset, and the books' error and the relevance in proportion."""

    name: str
    preset: str
    error: float
    amplification: float

    @property
    def family(self) -> str:
        """The family that the model belongs to."""
        return next((family for family in FAMILIES if self.name.startswith(family)), self.name)


def inspected(name: str) -> Row:
    """Return what ``lrp inspect`` finds for a model."""
    found = json.loads(lrp("inspect", "--model", name, "--weights", "random", "--json"))
    return Row(name, found["config"], found["books_error"], found["amplification"])


def by_family(rows: list[Row]) -> str:
    """Return a table of the largest error, and of the range of the relevance, by family."""
    lines = ["| family | models | preset | books off by at most | \\|relevance\\| at the pixels / score |"]
    lines.append("| --- | ---: | --- | ---: | ---: |")
    for family in sorted({row.family for row in rows}):
        members = [row for row in rows if row.family == family]
        sizes = dict.fromkeys(f"{size:.2g}" for size in sorted(row.amplification for row in members))
        ends = dict.fromkeys([next(iter(sizes)), next(reversed(sizes))])
        presets = ", ".join(dict.fromkeys(f"`{row.preset}`" for row in members))
        worst = max(row.error for row in members)
        lines.append(f"| {family} | {len(members)} | {presets} | {worst:.0e} | {' to '.join(ends)} |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Print a table of the named models, or of all."""
    print("| model | preset | books off by | sum of relevance magnitudes / score |")
    print("| --- | --- | ---: | ---: |")
    rows = []
    for name in names:
        row = inspected(name)
        rows.append(row)
        print(f"| {name} | {row.preset} | {row.error:.0e} | {row.amplification:.2g} |", flush=True)
    print(f"\n{by_family(rows)}")
    print(f"\n{len(names)} models, books off by at most {max(row.error for row in rows):.0e} of the score")


if __name__ == "__main__":
    main(sys.argv[1:] or [name for name in model_names() if name != "efficientnet_lite0"])
