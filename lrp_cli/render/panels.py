"""The panel: photograph, heatmap and overlay side by side, with what was explained in words and numbers.

Drawn with matplotlib's objects, never with pyplot: a Figure that nobody registered goes away with its last user, and
two threads that draw share nothing. What a matplotlibrc might change about the texts (TeX, fonts) is set explicitly.
"""

from bisect import bisect_left
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from PIL import Image

from lrp_cli.render.colours import HEATMAP_COLOURS, OVERLAY_COLOURS, colour_table
from lrp_cli.render.pictures import heatmap, overlay
from lrp_cli.render.scaling import pixel_relevance, relevance_limit

# The layout, in pixels. A side of 448 is 2 x 224 and 14 x 32: the common sizes are enlarged by whole factors.
_DPI = 150
_SIDE, _GAP = 448, 20
_WIDTH = 3 * _SIDE + 4 * _GAP
_ABOVE, _BELOW = 126, 92
_TALLEST = 2 * _SIDE

# DejaVu Sans comes with matplotlib; the others are the usual fonts with Chinese, Japanese and Korean letters.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
)
_LONGEST_TEXT = 300
_QUIET = "0.4"  # matplotlib's way to say a grey
_HAIRLINE = (204, 204, 204)


class _Box(NamedTuple):
    """A rectangle in pixels; matplotlib counts from the lower left corner, Pillow from the upper left one."""

    left: int
    start: int
    width: int
    height: int


def panel(
    view: Image.Image,
    relevance: npt.NDArray[Any],
    *,
    label: str,
    score: float,
    probability: float | None = None,
    model: str = "",
    config: str = "",
    in_colour: Image.Image | None = None,
    heatmap_colormap: str = HEATMAP_COLOURS,
    overlay_colormap: str = OVERLAY_COLOURS,
) -> Image.Image:
    """Draw photograph, heatmap and overlay side by side; an RGB image of 1424 pixels in width.

    The colour bar below the heatmap is symmetric around zero and labelled with relevance per pixel, in the unit of the
    score; its pointed ends say that the few pixels beyond share the last colour. Texts are drawn letter by letter (no
    TeX, ``$`` is a dollar) on one line; what is too long ends in an ellipsis, what no font can draw becomes U+FFFD.

    Args:
        view: the picture the model saw.
        relevance: (C, H, W) or (H, W), in units of the score; channels are summed.
        label: name of the explained class.
        score: what was explained, the logit for instance.
        probability: of the class, in [0, 1], where there is one.
        model: name of the model.
        config: name of the rule config.
        in_colour: the heatmap, where it shows more than the relevance, such as what the model did not see.
        heatmap_colormap: colour map of the heatmap and of the bar.
        overlay_colormap: colour map of the overlay.

    Raises:
        UsageError: no such colour map, or a bad shape.
        EngineError: a value is NaN or infinite.
    """
    pixels = pixel_relevance(relevance)
    height, width = pixels.shape
    enlargement = min(_SIDE / width, _TALLEST / height)
    size = (max(round(width * enlargement), 1), max(round(height * enlargement), 1))
    pictures = {
        "input": view.convert("RGB"),
        "relevance": in_colour or heatmap(pixels, colormap=heatmap_colormap),
        "overlay": overlay(view, pixels, colormap=overlay_colormap),
    }
    middles = [_GAP + column * (_SIDE + _GAP) + _SIDE // 2 for column in range(3)]

    sheet = _Sheet(_WIDTH, _ABOVE + size[1] + _BELOW)
    for middle, name in zip(middles, pictures, strict=True):
        sheet.text(name, middle, _BELOW + size[1] + 10, align="center", colour=_QUIET)
    bar = _Box(middles[1] - _SIDE // 2, _BELOW - 24, _SIDE, 12)
    sheet.colour_bar(heatmap_colormap, relevance_limit(pixels), bar)
    sheet.text("relevance per pixel, in the unit of the score", middles[1], 12, align="center", size=7.5, colour=_QUIET)

    numbers = f"score {_number(score, 4)}" + ("" if probability is None else f" · probability {probability:.1%}")
    top = _BELOW + size[1] + _ABOVE
    sheet.text(label, _GAP, top - 46, room=0.62 * _WIDTH, size=15, bold=True)
    sheet.text(numbers, _GAP, top - 80, size=11)
    sheet.text(model, _WIDTH - _GAP, top - 46, room=0.34 * _WIDTH, align="right")
    sheet.text(config, _WIDTH - _GAP, top - 80, room=0.34 * _WIDTH, align="right", colour=_QUIET)

    image = sheet.image()
    for middle, picture in zip(middles, pictures.values(), strict=True):
        _paste(picture, image, _Box(middle - size[0] // 2, _ABOVE, *size))
    return image


def _paste(picture: Image.Image, sheet: Image.Image, box: _Box) -> None:
    """Fit a picture into a box measured from the upper left corner, with a hairline around it.

    Pillow does this, for matplotlib resamples even where a pixel becomes two by two. Large pixels stay squares; where
    small ones would become squares of different sizes, a pattern, they are interpolated.
    """
    size = box.width, box.height
    whole = box.width % picture.width == 0 and box.height % picture.height == 0
    how = Image.Resampling.NEAREST if whole or box.width >= 3 * picture.width else Image.Resampling.LANCZOS
    outside = (box.left - 1, box.start - 1, box.left + box.width + 1, box.start + box.height + 1)
    sheet.paste(_HAIRLINE, outside)
    sheet.paste(picture.resize(size, how), (box.left, box.start))


class _Sheet:
    """A white figure to put things on, measured in pixels from the lower left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self.figure.set_layout_engine("none")
        self.canvas = FigureCanvasAgg(self.figure)

    def image(self) -> Image.Image:
        """Draw; an RGB image."""
        self.canvas.draw()  # type: ignore[no-untyped-call]
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]

    def colour_bar(self, colormap: str, limit: float, box: _Box) -> None:
        """Draw a horizontal colour bar from -limit to limit; the limit of a picture without relevance is 0."""
        scale = ScalarMappable(Normalize(-(limit or 1), limit or 1), ListedColormap(colour_table(colormap) / 255))
        axes = self._axes(box)
        bar = self.figure.colorbar(scale, cax=axes, orientation="horizontal", extend="both", extendfrac=0.03)
        ticks = [-limit, -limit / 2, 0, limit / 2, limit] if limit else [0]
        bar.set_ticks(
            ticks,
            labels=[_number(tick, 3) for tick in ticks],
            fontproperties=_font(7.5),
            usetex=False,
            parse_math=False,
        )
        bar.minorticks_off()
        axes.grid(visible=False)
        axes.tick_params(direction="out", length=3, width=0.6, pad=2, colors=_QUIET)
        bar.outline.set(linewidth=0.6, edgecolor=_QUIET)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        room: float = _WIDTH,
        align: Literal["left", "center", "right"] = "left",
        size: float = 9,
        bold: bool = False,
        colour: str = "0.1",
    ) -> None:
        """Write one line with its base line at y, cut to ``room`` pixels."""
        font = _font(size, bold)
        renderer = self.canvas.get_renderer()  # type: ignore[no-untyped-call]

        def too_wide(length: int) -> bool:
            drawn, _, _ = renderer.get_text_width_height_descent(_elided(line, length), font, ismath=False)
            return bool(drawn > room)

        line = _drawable(text, bold)
        length = len(line)
        if too_wide(length):
            length = bisect_left(range(1, length), True, key=too_wide)  # the longest beginning that fits
        self.figure.text(
            x / self.width,
            y / self.height,
            _elided(line, length),
            horizontalalignment=align,
            verticalalignment="baseline",
            fontproperties=font,
            color=colour,
            usetex=False,
            parse_math=False,
        )

    def _axes(self, box: _Box) -> Axes:
        left, width = box.left / self.width, box.width / self.width
        bottom, height = box.start / self.height, box.height / self.height
        return self.figure.add_axes((left, bottom, width, height))


def _number(value: float, digits: int) -> str:
    """Format with a real minus, scientific where the size of the number asks for it."""
    return f"{value:.{digits}g}".replace("-", "−")


def _elided(line: str, length: int) -> str:
    """Cut to ``length`` characters, an ellipsis in place of the rest."""
    return line if length >= len(line) else line[:length].rstrip() + "…"


@cache
def _families() -> list[str]:
    """Return those of the fonts that are installed, for matplotlib warns about each that is not."""
    installed = {font.name for font in fontManager.ttflist}
    return [name for name in _FONTS if name in installed]


def _font(size: float, bold: bool = False) -> FontProperties:
    return FontProperties(family=_families(), size=size, weight="bold" if bold else "normal")


@cache
def _letters(bold: bool) -> frozenset[int]:
    """Return the code points that at least one of the fonts can draw."""
    weight = "bold" if bold else "normal"
    paths = [findfont(FontProperties(family=name, weight=weight)) for name in _families()]
    return frozenset().union(*(get_font(path).get_charmap() for path in paths))


def _drawable(text: str, bold: bool) -> str:
    """Return one line of characters the fonts have; control characters and the like are dropped."""
    line = " ".join(text[: 4 * _LONGEST_TEXT].split())[:_LONGEST_TEXT]
    return "".join(
        char if ord(char) in _letters(bold) else "\N{REPLACEMENT CHARACTER}" for char in line if char.isprintable()
    )
