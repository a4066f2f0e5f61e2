"""A run: pictures are decoded ahead, explained in batches, and drawn, written and recorded behind, in order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

import torch

from lrp_cli.errors import LrpError
from lrp_cli.explainer import Explainer
from lrp_cli.models import LoadedModel, Target
from lrp_cli.runs.explaining import Loaded, Undrawn
from lrp_cli.runs.files import StorageError, write_whole
from lrp_cli.runs.loading import Loader
from lrp_cli.runs.network import Network
from lrp_cli.runs.outputs import draw
from lrp_cli.runs.pictures import Picture
from lrp_cli.runs.prefetch import Behind, in_order, threads_at_work
from lrp_cli.runs.recording import Recorder
from lrp_cli.runs.records import Failure, Outcome, Record
from lrp_cli.runs.settings import Settings
from lrp_cli.runs.signals import raise_if_interrupted
from lrp_cli.runs.targets import is_single
from lrp_cli.runs.turns import Turns, usable_cores

THREADS = min(4, usable_cores())
"""So many threads read, and so many draw. More did not help beside a GPU, on a machine of 16 cores."""

WRITERS = 2 * THREADS
"""So many write; they wait for the disk most of the time."""

Sink: TypeAlias = Callable[[Sequence[Outcome]], None]
"""Takes the results of one picture. Called from another thread, in order, once they are recorded."""


@dataclass(frozen=True)
class Drawn:
    """A result whose outputs are still to be written: kind -> what its file is to hold."""

    record: Record
    contents: Mapping[str, bytes]


@dataclass(frozen=True)
class Group:
    """What there is to say about one picture: as it was loaded, if it was, and its results."""

    picture: Picture
    loaded: Loaded | None
    results: Sequence[Undrawn | Drawn | Outcome]


class Pipeline:
    """Explains pictures with one model and one config."""

    def __init__(
        self, model: LoadedModel, explainer: Explainer, settings: Settings, loader: Loader, recorder: Recorder
    ) -> None:
        self._network = Network(model, explainer, settings)
        self._settings = settings
        self._loader = loader
        self._recorder = recorder
        self._turns = Turns(are_taken=self._network.takes_the_processor and _draws_on_all_cores(settings))

    def run(self, pictures: Iterable[Picture], sink: Sink, note: Callable[[str], None]) -> None:
        """Explain pictures; the results of each go to ``sink``, what else the user should know to ``note``.

        Raises:
            LrpError: nothing that concerns one picture alone: the config, the model, the output directory.
            Exception: what ``sink`` raises ends the run; what was begun is recorded still.
        """

        def ahead() -> int:
            return 2 * max(self._network.batches.most, self._turns.batches * self._network.batches.size)

        def record(group: Group) -> Sequence[Outcome]:
            return self._recorder.record(group.picture, group.loaded, _outcomes(group))

        with (
            closing(self._network),
            threads_at_work(THREADS, "lrp-read") as readers,
            Behind(
                self._draw,
                self._write,
                lambda group: sink(record(group)),
                threads=THREADS,
                writers=WRITERS,
                ahead=ahead,
                late=record,
            ) as behind,
            closing(in_order(readers, self._load, pictures, ahead)) as loaded,
            closing(self._turns),
        ):
            for together in self._together(self._batches(loaded)):
                behind.wait_for_room()
                explained: list[Group] = []
                try:
                    with self._turn(together, behind.wait_until_drawn):
                        for batch in together:
                            raise_if_interrupted()
                            explained += self._explain(batch)
                finally:
                    for group in explained:
                        behind.put(group)
                while self._network.notes:
                    note(self._network.notes.pop())
        self._network.raise_if_refused()

    def _load(self, picture: Picture) -> Group:
        self._turns.wait()
        loaded = self._loader.load(picture)
        if isinstance(loaded, Loaded):
            return Group(picture, loaded, ())
        return Group(picture, None, (loaded,))

    def _batches(self, groups: Iterable[Group]) -> Iterator[list[Group]]:
        """Put pictures of one size together; what needs no network keeps its place in the order."""
        batch: list[Group] = []
        waiting: list[Loaded] = []
        for group in groups:
            differs = group.loaded and waiting and waiting[0].tensor.shape != group.loaded.tensor.shape
            if differs or len(waiting) >= self._network.batches.size or len(batch) >= 4 * self._network.batches.size:
                yield batch
                batch, waiting = [], []
            batch.append(group)
            if group.loaded:
                waiting.append(group.loaded)
            if not waiting:
                yield batch
                batch = []
        if batch:
            yield batch

    def _together(self, batches: Iterable[list[Group]]) -> Iterator[list[list[Group]]]:
        """Put batches together that the network explains in one turn; those with several results stay alone."""
        together: list[list[Group]] = []
        for batch in batches:
            if not is_single(_targets(batch)):
                self._turns.batches = 1  # no more is read ahead than for one batch
                if together:
                    yield together
                yield [batch]
                together = []
                continue
            together.append(batch)
            if len(together) >= self._turns.batches:
                yield together
                together = []
        if together:
            yield together

    def _turn(self, together: Sequence[Sequence[Group]], before: Callable[[], None]) -> AbstractContextManager[None]:
        """Return the turn of the network in which batches are explained, if they are to have one."""
        targets = [_targets(batch) for batch in together]
        of_all = [*chain.from_iterable(targets)]
        # Each thread needs a picture to draw, and none is to wait for the disk, as _draw does with several results.
        pays = len(of_all) >= THREADS and is_single(of_all)
        return self._turns.network(sum(map(bool, targets)), before) if pays else nullcontext()

    def _explain(self, batch: Sequence[Group]) -> list[Group]:
        loaded = [group.loaded for group in batch if group.loaded]
        results = iter(self._network.explain(loaded) if loaded else [])
        return [replace(group, results=next(results)) if group.loaded else group for group in batch]

    def _draw(self, group: Group) -> Group:
        if self._settings.full or len(group.results) > 1:
            # So much is written as soon as it is drawn: it would fill the memory where the disk is slow.
            return replace(group, results=[self._written(self._drawn(result)) for result in group.results])
        return replace(group, results=[self._drawn(result) for result in group.results])

    def _drawn(self, result: Undrawn | Drawn | Outcome) -> Drawn | Outcome:
        if not isinstance(result, Undrawn):
            return result
        try:
            return Drawn(result.record, draw(result.explained, result.record.outputs))
        except MemoryError:
            return _failed(result.record, LrpError("out of memory while it was drawn"))
        except LrpError as error:
            return _failed(result.record, error)

    def _write(self, group: Group) -> Group:
        return replace(group, results=[self._written(result) for result in group.results])

    def _written(self, result: Undrawn | Drawn | Outcome) -> Undrawn | Outcome:
        if not isinstance(result, Drawn):
            return result
        record = result.record
        try:
            files = {
                kind: write_whole(record.outputs[kind], data, self._settings.directory)
                for kind, data in result.contents.items()
            }
        except StorageError:
            raise
        except LrpError as error:
            return _failed(record, error)
        return replace(record, files=files)


def most_threads() -> int:
    """Return how many threads a run has at most: its own, and those that torch has for the two that may explain."""
    return 2 * THREADS + WRITERS + 3 + 2 * torch.get_num_threads()


def _draws_on_all_cores(settings: Settings) -> bool:
    """Return whether as many threads as there are cores draw, and do nothing else.

    Panels hold Python's lock for most of the time; whole pictures are written as they are drawn.
    """
    return usable_cores() <= THREADS and "panel" not in settings.kinds and not settings.full


def _failed(record: Record, error: LrpError) -> Failure:
    return Failure(record.image, f"{record.image}: {error}")


def _targets(batch: Sequence[Group]) -> list[tuple[Target, ...]]:
    return [group.loaded.targets for group in batch if group.loaded]


def _outcomes(group: Group) -> list[Outcome]:
    return [result for result in group.results if not isinstance(result, Undrawn | Drawn)]
