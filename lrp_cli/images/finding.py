"""Which pictures a run is about: files are taken as named, folders are searched."""

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from itertools import chain
from pathlib import Path

from lrp_cli.images.lists import Listed

Admits = Callable[[Path], bool]


@dataclass
class Found:
    """What :func:`find_images` found.

    Attributes:
        images: the pictures.
        missing: each path that led to none, with the reason in one line.
        targets: what to explain of a picture, as text, where a list says so.
    """

    images: list[Path] = field(default_factory=list)
    missing: list[tuple[Path, str]] = field(default_factory=list)
    targets: dict[Path, tuple[str, ...]] = field(default_factory=dict)


def find_images(
    paths: Sequence[Path | Listed],
    *,
    recursive: bool,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    skip: Admits = lambda _: False,
    targets: Sequence[str] = (),
) -> Found:
    """Find the pictures that ``paths`` name, in a stable order and each once.

    A file is kept whatever its suffix: whoever names it wants it. A folder gives the files in it whose suffix Pillow
    can decode, in natural order (``img2`` before ``img10``, upper and lower case alike), hidden ones left out; with
    ``recursive``, its folders follow in the same order, each real folder once, so that loops of links end. A path that
    does not exist and has ``*``, ``?`` or ``[`` in it is a pattern (``**`` stands for any number of folders).

    Args:
        paths: as given by the user, or as read from a list.
        recursive: look in the folders of folders, too.
        include: shell patterns, of which a picture must match one if there are any: its name, or its whole path where
            the pattern has a slash.
        exclude: shell patterns, of which a picture must match none.
        skip: says which files and folders are passed over in the search.
        targets: what is explained of a picture where it is named without targets, perhaps beside a list that has some.

    Nothing is opened and nothing is raised: paths that lead to no picture are listed in ``Found.missing``.
    """
    found = Found()
    search = _Search(recursive, _admits(include, exclude), skip, found)
    seen: dict[Path, Path] = {}
    mentions: dict[Path, list[tuple[str, ...]]] = {}  # the targets, if any, each time a picture is named
    for listed in (path if isinstance(path, Listed) else Listed(path, is_pattern=True) for path in paths):
        try:
            candidates = search.images(listed)
            for candidate in candidates:
                # Two names of one file (`a.jpg` and `./a.jpg`, a link and its target) are one picture.
                identity = _identity(candidate)
                if identity not in seen:
                    seen[identity] = candidate
                    found.images.append(candidate)
                mentions.setdefault(seen[identity], []).append(listed.targets)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            found.missing.append((listed.path, _reason(error)))
    for image, texts in mentions.items():
        if any(texts):
            found.targets[image] = tuple(dict.fromkeys(chain.from_iterable(own or targets for own in texts)))
    return found


@dataclass
class _Search:
    recursive: bool
    admits: Admits
    skip: Admits
    found: Found

    def images(self, listed: Listed) -> list[Path]:
        path = listed.path
        if path.is_dir():
            return self._images_in(path)
        if listed.is_pattern and glob.has_magic(str(path)) and not path.exists():
            return self._matching(path)
        path.stat()
        if not self.admits(path):
            self.found.missing.append((path, "left out by --include or --exclude"))
            return []
        return [path]

    def _matching(self, pattern: Path) -> list[Path]:
        """Expand a pattern that the shell left alone; of the folders it matches, only the pictures in them count."""
        matches = sorted((Path(match) for match in glob.iglob(str(pattern), recursive=True)), key=_natural_path)  # noqa: PTH207 (may be absolute)
        files = [match for match in matches if not match.is_dir() and self.admits(match) and not self.skip(match)]
        if not files:
            self.found.missing.append((pattern, "no file matches"))
        return files

    def _images_in(self, folder: Path) -> list[Path]:
        files, folders = self._listing(folder)
        if self.recursive:
            files = [*files, *self._walk(folders, {folder.resolve()})]
        if not files:
            hint = " (use --recursive to look in its folders)" if folders and not self.recursive else ""
            self.found.missing.append((folder, f"directory holds no images{hint}"))
        kept = [file for file in files if self.admits(file)]
        if files and not kept:
            self.found.missing.append((folder, f"--include and --exclude leave none of its {len(files)} images"))
        return kept

    def _walk(self, folders: Sequence[Path], visited: set[Path]) -> Iterator[Path]:
        """Yield the pictures below ``folders``, depth first; one that cannot be listed goes to ``found.missing``."""
        waiting = list(reversed(folders))
        while waiting:
            folder = waiting.pop()
            try:
                identity = folder.resolve()
                if identity in visited:
                    continue
                visited.add(identity)
                files, subfolders = self._listing(folder)
            except OSError as error:
                self.found.missing.append((folder, _reason(error)))
                continue
            yield from files
            waiting.extend(reversed(subfolders))

    def _listing(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the pictures and the folders directly in ``folder``, in natural order, without hidden ones."""
        entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=_natural)
        entries = [entry for entry in entries if not self.skip(entry)]
        folders = [entry for entry in entries if entry.is_dir()]
        # Broken links and pipes stay: whoever named them like pictures is told that they are none.
        others = [entry for entry in entries if entry.suffix.lower() in _suffixes()]
        return [entry for entry in others if not entry.is_dir()], folders


def _identity(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError:  # a link to itself, in Python up to 3.12
        return path


def _admits(include: Sequence[str], exclude: Sequence[str]) -> Admits:
    def matches(path: Path, pattern: str) -> bool:
        if "/" not in pattern:
            return fnmatchcase(path.name, pattern)
        return fnmatchcase(path.as_posix(), pattern) or fnmatchcase(path.as_posix(), f"*/{pattern}")

    def admits(path: Path) -> bool:
        wanted = not include or any(matches(path, pattern) for pattern in include)
        return wanted and not any(matches(path, pattern) for pattern in exclude)

    return admits


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Order ``img2`` before ``img10``: odd places of the split are the numbers, so that like is compared with like."""
    # Longer rows of digits are no numbers that anyone counts with, and Python refuses to parse them.
    parts = re.split(r"([0-9]{1,18})", path.name.casefold())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], path.name


def _natural_path(path: Path) -> list[tuple[list[str | int], str]]:
    return [_natural(Path(part)) for part in path.parts]


@cache
def _suffixes() -> frozenset[str]:
    from lrp_cli.images.decoding import readable_suffixes

    return readable_suffixes()


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file or directory"
    if isinstance(error, ValueError):
        return "not a path"
    return (error.strerror or type(error).__name__).lower()
