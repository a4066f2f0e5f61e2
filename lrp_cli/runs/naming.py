"""What the files of a picture are called: guessable, and never the same for two pictures of a run."""

import hashlib
import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

LONGEST_STEM = 120
"""In bytes, of the 255 that a file name may have: class and kind of output follow."""

LONGEST_LABEL = 40
"""In bytes; there may be two in a name."""


class Score(NamedTuple):
    """A class, and what it is held against: the index of another, "rest" for all others, or None."""

    target: int
    versus: int | str | None = None


def output_stems(
    pictures: Sequence[Path], folders: Sequence[Path] = (), recorded: Mapping[str, str | None] | None = None
) -> dict[Path, PurePath]:
    """Return, for each picture, the path that its outputs' names begin with, relative to the output directory.

    A picture found in one of ``folders`` keeps its place below it, any other its file name. The suffix stays, so that
    ``cat.jpg`` and ``cat.png`` do not meet; where two pictures would still share a name, the folders that tell them
    apart are put in front (``a/cat.jpg``, ``b/cat.jpg``). A picture that has results already keeps their name, and no
    other picture gets it as long as that one is there.

    Args:
        pictures: paths of pictures.
        folders: where they were searched for.
        recorded: names of results -> absolute path of their picture, in the order in which they were recorded; None
            where no picture is to get that name: files and standard input do not take each other's.
    """
    roots = [Path(os.path.abspath(folder)) for folder in folders]  # noqa: PTH100 (resolve would follow links)
    names = {name: path for name, path in (recorded or {}).items() if _is_a_stem(name)}  # a manifest may lie
    latest = {path: name for name, path in names.items()}
    found = {picture: latest.get(os.path.abspath(picture)) for picture in pictures}  # noqa: PTH100
    kept = {picture: name for picture, name in found.items() if name and _is_named_after(name, picture)}
    own = set(kept.values())
    taken = {name.casefold() for name, path in names.items() if name in own or path is None or os.path.lexists(path)}
    parts = {picture: _parts(picture, roots) for picture in pictures if picture not in kept}
    length = {picture: count for picture, (_, count) in parts.items()}
    whole = {picture: str(_stem(all_parts)).casefold() for picture, (all_parts, _) in parts.items()}
    while True:
        stems = {picture: _stem(all_parts[-length[picture] :]) for picture, (all_parts, _) in parts.items()}
        sharing = defaultdict(list)
        for picture, stem in stems.items():
            sharing[stem.as_posix().casefold()].append(picture)  # some file systems do not tell case apart
        colliding = [group for name, group in sharing.items() if len(group) > 1 or name in taken]
        longer = [
            picture
            for group in colliding
            for picture in group
            if length[picture] < len(parts[picture][0]) and (len(group) == 1 or len({whole[one] for one in group}) > 1)
        ]
        if not longer:
            alike = [picture for group in colliding for picture in group]
            return (
                {picture: PurePath(name) for picture, name in kept.items()}
                | stems
                | {picture: _with_digest(stems[picture], picture) for picture in alike}
            )
        for picture in longer:
            length[picture] += 1


def _is_a_stem(name: str) -> bool:
    """Whether a name is one that :func:`output_stems` could have given: relative, plain, and safe in each part."""
    path = PurePosixPath(name)
    try:
        is_safe = all(map(_is_safe, path.parts))
    except UnicodeEncodeError:  # JSON can hold what no file name can
        return False
    return is_safe and path.as_posix() == name and not path.is_absolute() and path.name != ""


def _is_named_after(name: str, picture: Path) -> bool:
    return PurePosixPath(name).name.startswith(_safe(picture.name))


def _is_safe(part: str) -> bool:
    shown, _, digest = part.rpartition("~")
    has_digest = re.fullmatch("[0-9a-f]{8}", digest) is not None and shown != ""
    return part != ".." and (_safe(part) == part or (has_digest and _is_safe(shown)))


def _parts(picture: Path, roots: Sequence[Path]) -> tuple[tuple[str, ...], int]:
    """Return the parts of the absolute path, without its root, and how many of the last are kept."""
    absolute = Path(os.path.abspath(picture))  # noqa: PTH100
    below = [len(absolute.parts) - len(root.parts) for root in roots if absolute.is_relative_to(root)]
    return absolute.parts[1:], max(1, *below) if below else 1


def _stem(parts: Sequence[str]) -> PurePath:
    return PurePath(*(_safe(part) for part in parts))


def _safe(part: str) -> str:
    """Return a file name without control characters, bytes that are no text and leading dashes, cut to length."""
    shown = "".join("_" if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} else char for char in part)
    shown = re.sub(r"^-", "_", shown)
    encoded = os.fsencode(shown)
    if shown == part and len(encoded) <= LONGEST_STEM:
        return part
    return os.fsdecode(encoded[:LONGEST_STEM].decode("utf-8", "ignore").encode()) + "~" + _digest(part)


def _with_digest(stem: PurePath, picture: Path) -> PurePath:
    return stem.with_name(f"{stem.name}~{_digest(os.path.abspath(picture))}")  # noqa: PTH100


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def slug(label: str) -> str:
    """Return a class name as part of a file name: ``tiger cat`` becomes ``tiger_cat``; letters and digits only.

    Where file names cannot hold a letter (with ASCII alone), it loses its accents, or is left out.
    """
    kept = "".join(map(_storable, unicodedata.normalize("NFKC", label)))
    letters = re.sub(r"\W+", "_", kept).strip("_").lower()
    return letters.encode()[:LONGEST_LABEL].decode("utf-8", "ignore")


def _storable(letter: str) -> str:
    """Return what file names can hold of a letter."""
    encoding = sys.getfilesystemencoding()
    if letter.encode(encoding, "ignore"):
        return letter
    return unicodedata.normalize("NFKD", letter).encode(encoding, "ignore").decode(encoding)


def output_path(directory: Path, stem: PurePath, score: Score, labels: Sequence[str], kind: str) -> Path:
    """Return the path of one output: ``DIRECTORY/cat.jpg.282_tiger_cat.overlay.png`` or ``... .npy``.

    A contrast names what the class is held against: ``cat.jpg.282_tiger_cat_vs_967_espresso.npy``, ``..._vs_rest.npy``.
    """
    name = _class(score.target, labels)
    if score.versus is not None:
        name += "_vs_" + (score.versus if isinstance(score.versus, str) else _class(score.versus, labels))
    ending = "npy" if kind == "npy" else f"{kind}.png"
    return directory / stem.with_name(f"{stem.name}.{name}.{ending}")


def is_named_as_output(name: str) -> bool:
    """Whether a file is called as :func:`output_path` calls what is drawn of a picture: ``cat.jpg.282.overlay.png``."""
    from lrp_cli.images.decoding import readable_suffixes

    drawing = re.fullmatch(r".+(\.\w+)(~[0-9a-f]{8})?\.\d+(_\w*)?\.(overlay|heatmap|panel)\.png", name)
    return drawing is not None and drawing[1].lower() in readable_suffixes()


def _class(index: int, labels: Sequence[str]) -> str:
    return "_".join(filter(None, [str(index), slug(labels[index])]))
