"""The books of torchvision's whole zoo: every classification model, random weights, the preset of ``--config auto``.

    python -m tests.benchmarks.zoo [NAME ...]

For each model the score is explained as ``lrp inspect --model NAME --weights random`` does, in float32, and a line
printed: how far the books are off, and how large the relevance of the pixels is, both in proportion to the score.
"""

import json
import sys

from lrp_cli.models import model_names
from tests.benchmarks.command import lrp


def main(names: list[str]) -> None:
    """Print a table of the named models, or of all."""
    print("| model | preset | books off by | sum of relevance magnitudes / score |")
    print("| --- | --- | ---: | ---: |")
    worst = 0.0
    for name in names:
        found = json.loads(lrp("inspect", "--model", name, "--weights", "random", "--json"))
        worst = max(worst, found["books_error"])
        print(f"| {name} | {found['config']} | {found['books_error']:.0e} | {found['amplification']:.2g} |", flush=True)
    print(f"\n{len(names)} models, books off by at most {worst:.0e} of the score")


if __name__ == "__main__":
    main(sys.argv[1:] or [name for name in model_names() if name != "efficientnet_lite0"])
