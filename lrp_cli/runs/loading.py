"""From a file to what the network takes in, in other threads; what is recorded already is left out."""

import hashlib
from functools import cache

from lrp_cli.errors import ImageError, UsageError, is_out_of_memory
from lrp_cli.images.decoding import read_picture
from lrp_cli.models import LoadedModel, Target, parse_target
from lrp_cli.runs.explaining import Loaded
from lrp_cli.runs.files import sha256_of
from lrp_cli.runs.pictures import Picture
from lrp_cli.runs.records import Failure, Skipped
from lrp_cli.runs.resume import Resume
from lrp_cli.runs.settings import Provenance, Settings


class Loader:
    """Reads pictures; safe to use from several threads."""

    def __init__(self, model: LoadedModel, settings: Settings, provenance: Provenance, resume: Resume) -> None:
        """Parse what is to be explained.

        Raises:
            UsageError: a target that no class goes by.
        """
        self._model = model
        self._settings = settings
        self._provenance = provenance
        self._resume = resume
        self._parse = cache(lambda text: parse_target(text, model.labels))
        self._targets = self._parsed(settings.targets)

    def load(self, picture: Picture) -> Loaded | Skipped | Failure:
        """Return the picture, or the records of an earlier run, or why it cannot be explained."""
        try:
            settings = self._provenance.digest(picture.targets)
            done = None if self._settings.force else self._recorded(picture, settings)
            return done or self._load(picture, settings)
        except (ImageError, UsageError) as error:
            shown = str(picture.path)
            reason = str(error)
            return Failure(picture.path, reason if reason.startswith(shown) else f"{shown}: {reason}")
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                return Failure(picture.path, f"{picture.path}: out of memory while it was read")
            raise

    def _recorded(self, picture: Picture, settings: str) -> Skipped | None:
        name = picture.stem.as_posix()
        if not self._resume.knows(name, settings):
            return None
        try:
            records = self._resume.records(name, settings, _sha256(picture), picture.path)
        except OSError:
            return None  # decoding it says what is wrong
        return None if records is None else Skipped(picture.path, records)

    def _load(self, picture: Picture, settings: str) -> Loaded:
        targets = self._parsed(picture.targets) if picture.targets else self._targets
        decoded = read_picture(picture.path, picture.data)
        preprocessing = self._model.preprocessing
        view = preprocessing.view(decoded.image)
        try:
            sha256, size = _sha256(picture), picture.path.stat().st_size if picture.data is None else len(picture.data)
        except OSError as error:
            raise ImageError(f"{picture.path}: {error.strerror or error}") from error
        return Loaded(
            picture=picture,
            view=view,
            tensor=preprocessing.tensor(view),
            mapping=preprocessing.placement(decoded.image.size, decoded.orientation),
            targets=targets,
            settings=settings,
            sha256=sha256,
            bytes=size,
        )

    def _parsed(self, texts: tuple[str, ...]) -> tuple[Target, ...]:
        return tuple(self._parse(text) for text in texts)


def _sha256(picture: Picture) -> str:
    return sha256_of(picture.path) if picture.data is None else hashlib.sha256(picture.data).hexdigest()
