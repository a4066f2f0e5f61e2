"""Which pictures a run is about: files are taken as named, folders are searched."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@dataclass
class Found:
    """What :func:`find_images` found: the pictures, and each path that led to none with the reason in one line."""

    images: list[Path] = field(default_factory=list)
    missing: list[tuple[Path, str]] = field(default_factory=list)


def find_images(paths: Sequence[Path], *, recursive: bool) -> Found:
    """Find the pictures that ``paths`` name, in a stable order and each once.

    A file is kept whatever its suffix: whoever names it wants it. A folder gives the files in it whose suffix Pillow
    can decode, in natural order (``img2`` before ``img10``, upper and lower case alike), hidden ones left out; with
    ``recursive``, its folders follow in the same order, each real folder once, so that loops of links end.

    Nothing is opened and nothing is raised: paths that lead to no picture are listed in ``Found.missing``.
    """
    found = Found()
    seen: set[Path] = set()
    for path in paths:
        try:
            candidates = _images_in(path, recursive=recursive, found=found) if path.is_dir() else [_existing(path)]
        except OSError as error:
            found.missing.append((path, _reason(error)))
            continue
        for candidate in candidates:
            # Two names of one file (`a.jpg` and `./a.jpg`, a link and its target) are one picture.
            identity = candidate.resolve()
            if identity not in seen:
                seen.add(identity)
                found.images.append(candidate)
    return found


def _existing(path: Path) -> Path:
    path.stat()
    return path


def _images_in(folder: Path, *, recursive: bool, found: Found) -> list[Path]:
    files, folders = _listing(folder)
    if recursive:
        files = [*files, *_walk(folders, {folder.resolve()}, found)]
    if not files:
        hint = " (use --recursive to look in its folders)" if folders and not recursive else ""
        found.missing.append((folder, f"directory holds no images{hint}"))
    return files


def _walk(folders: Sequence[Path], visited: set[Path], found: Found) -> Iterator[Path]:
    """Yield the pictures below ``folders``, depth first; a folder that cannot be listed goes to ``found.missing``."""
    for folder in folders:
        identity = folder.resolve()
        if identity in visited:
            continue
        visited.add(identity)
        try:
            files, subfolders = _listing(folder)
        except OSError as error:
            found.missing.append((folder, _reason(error)))
            continue
        yield from files
        yield from _walk(subfolders, visited, found)


def _listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the pictures and the folders directly in ``folder``, in natural order, without hidden ones."""
    entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=_natural)
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if entry.suffix.lower() in _suffixes() and entry.is_file()]
    return files, folders


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Order ``img2`` before ``img10``: odd places of the split are the numbers, so that like is compared with like."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


@cache
def _suffixes() -> frozenset[str]:
    from lrp_cli.images.decoding import readable_suffixes

    return readable_suffixes()


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file or directory"
    return (error.strerror or type(error).__name__).lower()
