"""Where configs come from: the presets by their names, anybody's own by its path."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lrp_cli.errors import ConfigError, closest
from lrp_cli.rulesets.complaints import complain, one_line
from lrp_cli.rulesets.schema import Ruleset
from lrp_cli.rulesets.yaml_text import ConfigTextError, parse

MAX_BYTES = 64 * 1024
"""The largest config that is read, in bytes; the presets have about 1,000."""


@dataclass(frozen=True)
class NamedRuleset:
    """A config with the name it goes by, the file it was read from, and that file's text as it stands."""

    name: str
    path: Path
    ruleset: Ruleset
    text: str

    def resolved(self) -> dict[str, Any]:
        """Return the config as plain JSON data, with every default and every shorthand written out."""
        return self.ruleset.model_dump(mode="json", by_alias=True)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of :meth:`resolved` as JSON with sorted keys and without blanks."""
        canonical = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def load(name_or_path: str | Path) -> NamedRuleset:
    """Read a config: a preset by its name, any other by the path of its file.

    A bare word is a preset where there is one of that name, whatever lies in the working directory. Raises
    :class:`ConfigError` where there is no such config, or it is not valid.
    """
    if isinstance(name_or_path, str):
        available = _preset_paths()
        if name_or_path in available:
            return _read(available[name_or_path])
        if not _looks_like_a_path(name_or_path):
            raise ConfigError(
                f"there is no config {name_or_path!r}{closest(name_or_path, available)} "
                "('lrp configs' lists the presets; a config of your own is given by the path of its file)"
            )
    return _read(Path(name_or_path))


def presets() -> list[NamedRuleset]:
    """Return the configs that come with the package, sorted by name."""
    return [_read(path) for _, path in sorted(_preset_paths().items())]


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config, for editors and other tools."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Ruleset.model_json_schema(by_alias=True, mode="validation"),
    }


def _preset_paths() -> dict[str, Path]:
    # A wheel carries the presets inside the package; a source checkout has them beside it.
    packaged = Path(str(resources.files("lrp_cli"))) / "configs"
    folder = packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "configs"
    return {path.stem: path for path in folder.glob("*.yaml")}


def _looks_like_a_path(text: str) -> bool:
    if text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text:
        return True
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a file's name, or with a NUL in it
        return False


def _read(path: Path) -> NamedRuleset:
    shown = one_line(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read the config {shown}: {reason}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{shown}: not a config: it has more than {MAX_BYTES // 1024} KiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{shown}:{line}: not a text in UTF-8; save the config as UTF-8") from error
    return NamedRuleset(path.stem, path, _validate(text, shown), text)


def _validate(text: str, shown: str) -> Ruleset:
    """Turn the text of a config into a ruleset; ``shown`` is the name of its file in messages."""
    try:
        content, root = parse(text)
    except ConfigTextError as error:
        place = "".join(f":{number}" for number in (error.line, error.column) if number is not None)
        raise ConfigError(f"{shown}{place}: {one_line(str(error))}") from error
    try:
        return Ruleset.model_validate(content, by_alias=True, by_name=False)  # `class`, not `class_`
    except ValidationError as error:
        line, what = complain(error, root)
        raise ConfigError(f"{shown}:{line}: {one_line(what)}") from error
