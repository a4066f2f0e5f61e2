"""The options of ``lrp explain``, in the order that its help shows them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

KINDS = ("overlay", "heatmap", "panel", "npy")


class Interpolation(StrEnum):
    """How pictures are resized."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Fit(StrEnum):
    """How pictures of any proportions become the model's input."""

    CROP = "crop"
    SQUASH = "squash"
    PAD = "pad"


class Seed(StrEnum):
    """What the relevance starts with."""

    LOGIT = "logit"
    ONE = "one"
    PROBABILITY = "probability"


class Precision(StrEnum):
    """Floating-point type."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BFLOAT16 = "bfloat16"


class OnUnknown(StrEnum):
    """What to do about operations that no rule is known for."""

    ERROR = "error"
    GRADIENT = "gradient"


Paths: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATHS...",
        help="Pictures, directories that hold pictures, patterns such as 'photos/**/*.jpg', and lists of pictures "
        "(.txt, .csv); '-' reads paths from standard input, one a line.",
        show_default=False,
    ),
]
Recursive: TypeAlias = Annotated[
    bool, typer.Option("--recursive", "-r", help="Look in the folders of directories, too.")
]
Include: TypeAlias = Annotated[
    list[str] | None, typer.Option("--include", metavar="PATTERN", help="Only pictures that match, such as '*.jpg'.")
]
Exclude: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="No pictures that match, such as 'thumbs/*'.",
    ),
]
Lists: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(
        "--list",
        metavar="FILE",
        help="A list of pictures, whatever its name: a path a line, or a .csv with the columns image and, if you "
        "like, target. Relative to the list's folder.",
    ),
]
Stdin0: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--stdin0",
        help="Read paths from standard input, separated by NULs (find -print0).",
    ),
]
ImageStdin: TypeAlias = Annotated[bool, typer.Option("--image-stdin", help="Read a picture from standard input.")]
Name: TypeAlias = Annotated[str, typer.Option("--name", help="What to call the picture of --image-stdin.")]
Model: TypeAlias = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="The default one, or torchvision's, by name ('lrp models'); timm:NAME; FILE.py:FUNCTION."
    ),
]
Weights: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        metavar="NAME|random|FILE",
        help="Published weights such as IMAGENET1K_V1, 'random', or a checkpoint (.safetensors, .pth). "
        "[default: the model's default]",
    ),
]
Labels: TypeAlias = Annotated[
    Path | None, typer.Option("--labels", metavar="FILE", help="Names of the model's classes: text or JSON.")
]
RandomSeed: TypeAlias = Annotated[
    int, typer.Option("--random-seed", help="Which random numbers --weights random takes.")
]
Config: TypeAlias = Annotated[
    str,
    typer.Option(
        "--config",
        "-c",
        metavar="NAME|FILE",
        help="Rule config: a preset ('lrp configs'), a YAML file, or 'auto': the preset that suits the model.",
    ),
]
Targets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        metavar="predicted|top:K|INDEX|NAME|'A vs B'|'A vs rest'",
        help="Which class's score to explain; may be given several times. [default: predicted]",
    ),
]
SeedKind: TypeAlias = Annotated[
    Seed,
    typer.Option(
        "--seed",
        help="Relevance to start with: the score itself, 1, or what it does for the class's probability.",
    ),
]
Unknown: TypeAlias = Annotated[
    OnUnknown,
    typer.Option(
        "--on-unknown",
        help="For operations that no rule is known for: stop, or use the plain gradient.",
    ),
]
FitTo: TypeAlias = Annotated[
    Fit,
    typer.Option(
        "--fit",
        help="What the model sees: the middle, the whole picture out of proportion, or the whole with margins.",
    ),
]
Resize: TypeAlias = Annotated[
    int | None, typer.Option("--resize", min=1, help="Shorter side in pixels, in place of the model's own.")
]
Crop: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--crop",
        min=1,
        help="Side of the centre crop in pixels, in place of the model's own.",
    ),
]
Mean: TypeAlias = Annotated[
    str | None, typer.Option("--mean", metavar="R,G,B", help="Channel means, in place of the model's own.")
]
Std: TypeAlias = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", help="Channel deviations, in place of the model's own.")
]
HowToResize: TypeAlias = Annotated[
    Interpolation | None,
    typer.Option("--interpolation", help="How to resize, in place of the model's own."),
]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="Directory that outputs are written to.")]
Save: TypeAlias = Annotated[
    str, typer.Option("--save", "-s", help=f"What to write, separated by commas: {', '.join(KINDS)}.")
]
Full: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--full",
        help="Draw on the whole picture instead of the model's view; what the model did not see is striped.",
    ),
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line for each picture and target.")
]
Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print errors only (and, with --json, the results).")
]
Verbose: TypeAlias = Annotated[bool, typer.Option("--verbose", "-v", help="Say what is used and done.")]
BatchSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        "-b",
        min=1,
        help="Pictures that go through the network at once; less where the memory runs out. [default: 8, on a GPU as "
        "many as fit, up to 64]",
    ),
]
DType: TypeAlias = Annotated[
    Precision,
    typer.Option(
        "--dtype",
        help="Floating-point type of network and relevance; bfloat16 is for the products on the way back only, faster "
        "where the processor has it, and accurate to about a percent.",
    ),
]
Device: TypeAlias = Annotated[
    str,
    typer.Option("--device", help="Where the network runs: cpu, cuda, cuda:1, or auto."),
]
Threads: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--threads",
        metavar="N",
        help="Processor threads that the network takes on a CPU. [default: as many as torch takes of itself]",
    ),
]
Compile: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the explanations, after the first pictures, which takes a minute or more and pays for thousands "
        "of pictures; needs a C++ compiler.",
    ),
]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Explain again what is done already.")]
FailFast: TypeAlias = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")]
MaxFailures: TypeAlias = Annotated[
    int | None,
    typer.Option("--max-failures", metavar="N", min=1, help="Stop at the Nth failure."),
]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and write nothing.")]
