"""One run into one output directory: locked, resumed, recorded."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lrp_cli.errors import UsageError
from lrp_cli.explainer import Explainer
from lrp_cli.models import LoadedModel
from lrp_cli.runs.explaining import Loaded
from lrp_cli.runs.files import prepare_directory, remove_leftovers
from lrp_cli.runs.loading import Loader
from lrp_cli.runs.lock import locked
from lrp_cli.runs.manifest import Line, Manifest, read_lines
from lrp_cli.runs.pictures import Picture
from lrp_cli.runs.pipeline import Pipeline, Sink
from lrp_cli.runs.recording import Recorder
from lrp_cli.runs.records import REPORTED, Failure, Skipped
from lrp_cli.runs.resume import Resume
from lrp_cli.runs.settings import MAKERS, Provenance, Settings

Note = Callable[[str], None]


class Session:
    """A run with one model and one config."""

    def __init__(self, model: LoadedModel, explainer: Explainer, settings: Settings) -> None:
        """Prepare; nothing is written yet."""
        self._model = model
        self._explainer = explainer
        self._settings = settings
        self._provenance = Provenance(model, explainer.config, settings)

    def check(self) -> None:
        """Raise a UsageError where a target names no class."""
        self._loader([])

    def run(self, pictures: Sequence[Picture], sink: Sink, note: Note) -> None:
        """Explain what is not recorded yet; see :meth:`Pipeline.run`.

        Raises:
            UsageError: the directory cannot be written into, another run does, or has meanwhile taken a picture's name.
            LrpError: what ended the run.
        """
        directory = self._settings.directory
        prepare_directory(directory)
        with locked(directory):
            remove_leftovers(directory)
            with Manifest(directory) as manifest:
                earlier = _readable(directory, note)
                _check_names(pictures, earlier)
                recorder = Recorder(manifest, self._provenance, self._resume(earlier), earlier, directory)
                pipeline = Pipeline(self._model, self._explainer, self._settings, self._loader(earlier), recorder)
                pipeline.run(pictures, sink, note)

    def plan(self, pictures: Iterable[Picture], note: Note) -> Iterator[Picture | Skipped | Failure]:
        """Yield, for each picture, itself if it would be explained, or why not. Writes nothing."""
        loader = self._loader(_readable(self._settings.directory, note))
        for picture in pictures:
            loaded = loader.load(picture)
            yield picture if isinstance(loaded, Loaded) else loaded

    def _loader(self, earlier: Iterable[Line]) -> Loader:
        return Loader(self._model, self._settings, self._provenance, self._resume(earlier))

    def _resume(self, earlier: Iterable[Line]) -> Resume:
        return Resume(earlier, self._settings.directory, self._settings.kinds)


def _check_names(pictures: Iterable[Picture], earlier: Iterable[Line]) -> None:
    """Raise where a name belongs to another picture: names are given before the directory is locked."""
    sources = {line.name: line.source for line in earlier}
    for picture in pictures:
        name = picture.stem.as_posix()
        if name in sources and _is_of_another(picture, sources[name]):
            raise UsageError(f"another run has just used the name {name} for another picture; run this one again")


def _is_of_another(picture: Picture, source: str | None) -> bool:
    """Whether results with a picture's name are another's: of a file that is still there, or of standard input."""
    if source is None:
        return picture.data is None
    is_its_own = picture.data is None and source == os.path.abspath(picture.path)  # noqa: PTH100
    return not is_its_own and os.path.lexists(source)


def _readable(directory: Path, note: Note) -> list[Line]:
    """Return the lines of the manifest; says how many say nothing."""
    lines = []
    unreadable = 0
    for line, _ in read_lines(directory):
        if line is None:
            unreadable += 1
        else:
            _forget_the_rest(line)
            lines.append(line)
    if unreadable:
        note(f"unreadable lines of the manifest are passed over ('lrp verify' names them): {unreadable}")
    return lines


def _forget_the_rest(line: Line) -> None:
    """Keep what resuming needs: there may be tens of thousands of lines, of some thousand bytes each."""
    extra = line.model_extra or {}
    for name in extra.keys() - {*REPORTED, *MAKERS}:
        del extra[name]
