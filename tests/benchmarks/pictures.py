"""Time and size of the PNGs that are written, as multiples of Pillow's with the same search for repetitions.

Run it with ``python -m tests.benchmarks.pictures``; the pictures are renderings of the samples.
"""

import io
import zlib
from collections.abc import Callable, Sequence
from functools import partial

from PIL import Image

from lrp_cli import Explainer, render
from lrp_cli.images import decode
from lrp_cli.models import load_model
from tests.benchmarks.commands import SAMPLES, in_turn

ROUNDS = 50


def by_pillow(image: Image.Image) -> bytes:
    """Encode with the least effort that Pillow can be told to take."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def pictures() -> dict[str, list[Image.Image]]:
    """Return renderings of every sample picture's explanation, kind -> pictures."""
    model = load_model()
    steps = model.preprocessing
    explainer = Explainer(model.network, "auto", bounds=steps.bounds)
    made: dict[str, list[Image.Image]] = {"overlay": [], "heatmap": []}
    for path in sorted(SAMPLES.glob("*.[jp][pn]g")):
        view = steps.view(decode(path))
        relevance = explainer.explain(steps.tensor(view)[None]).relevance[0].numpy()
        made["overlay"].append(render.overlay(view, relevance))
        made["heatmap"].append(render.heatmap(relevance))
    return made


def encode_all(encode: Callable[[Image.Image], bytes], images: Sequence[Image.Image]) -> int:
    """Encode pictures; return how many bytes they take."""
    return sum(len(encode(image)) for image in images)


def main() -> None:
    """Print the table."""
    print("| kind | time | bytes |")
    print("| --- | ---: | ---: |")
    encoders: dict[str, Callable[[Image.Image], bytes]] = {"pillow": by_pillow, "lrp": render.encode_png}
    for kind, images in pictures().items():
        runs = {name: partial(encode_all, encode, images) for name, encode in encoders.items()}
        seconds = in_turn(runs, ROUNDS)
        sizes = {name: run() for name, run in runs.items()}
        time, size = (values["lrp"] / values["pillow"] for values in (seconds, sizes))
        print(f"| {kind} | {time:.2f} | {size:.2f} |")


if __name__ == "__main__":
    main()
