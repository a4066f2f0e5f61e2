"""Text for terminals and pipes."""

import sys
import unicodedata

_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class OutputClosed(Exception):  # noqa: N818 (no error: the reader has what it wanted)
    """Whoever reads our standard output has closed it, as in ``| head -1``."""


def printable(text: str) -> str:
    """Return ``text`` on one line and harmless to a terminal: control characters and non-text bytes are escaped.

    A file's name may hold any of them.
    """
    return "".join(_escaped(char) if unicodedata.category(char) in _UNSHOWN else char for char in text)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # how Python holds a byte that is no text
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def print_line(text: str) -> None:
    """Print a line on standard output, at once.

    Raises:
        OutputClosed: nobody reads it any more.
        OSError: it cannot be written.
    """
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosed from None


def counted(count: int, noun: str) -> str:
    """Return ``1 picture`` or ``2 pictures``."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
