"""A batch of pictures through the network, as many at once as the memory and the processor allow."""

import traceback
from collections.abc import Sequence
from functools import partial

import torch

from lrp_cli.errors import ConfigError, EngineError, LrpError, is_out_of_memory, model_failure
from lrp_cli.explainer import Explainer
from lrp_cli.models import LoadedModel
from lrp_cli.runs.batches import Batches
from lrp_cli.runs.explaining import Explaining, Loaded, Results, failure
from lrp_cli.runs.memory import make_room
from lrp_cli.runs.settings import Settings
from lrp_cli.runs.turns import usable_cores
from lrp_cli.runs.workplace import Workplace

MOST_REFUSALS = 4
"""So many pictures are tried in a row before a model is given up that has explained none."""


class Network:
    """Explains batches; a batch that does not fit in the memory, or of which one picture fails, is divided.

    Attributes:
        batches: how many pictures go through at once; less after the memory ran out.
        notes: what the user should know, to be fetched and cleared.
    """

    def __init__(self, model: LoadedModel, explainer: Explainer, settings: Settings) -> None:
        self._workplace = Workplace()
        self.batches = Batches(settings.batch_size, settings.device)
        self.notes: list[str] = []
        self._settings = settings
        self._explainer = explainer
        self._explaining = Explaining(model, explainer, settings)
        self._has_worked = self._has_shrunk = False
        self._refusals: list[EngineError] = []

    def explain(self, batch: Sequence[Loaded]) -> list[Results]:
        """Explain pictures of one size; returns the results of each.

        Raises:
            LrpError: what concerns no single picture: the config does not fit, or the model cannot be explained.
        """
        results: list[Results] = []
        start = 0
        while start < len(batch):
            part = batch[start : start + self.batches.size]
            done = self._try(part)
            if done is not None:
                results += done
                start += len(part)
        return results

    @property
    def takes_the_processor(self) -> bool:
        """Whether each operation is always shared out among as many threads as this process has cores."""
        return self._settings.device.type == "cpu" and 1 < torch.get_num_threads() >= usable_cores()

    def close(self) -> None:
        """End its thread, if it has one; nothing can be explained any more."""
        self._workplace.close()

    def raise_if_refused(self) -> None:
        """Raise that the engine could explain none, if it could not; why, each picture's failure has said.

        Raises:
            EngineError: the model cannot be explained.
        """
        if self._refusals and not self._has_worked:
            raise EngineError("no picture of this run could be explained, for what is said above") from self._refusals[
                -1
            ]

    def _try(self, part: Sequence[Loaded]) -> list[Results] | None:
        """Return the results, or None where the part is to be tried again in smaller ones."""
        try:
            with self.batches.watched(len(part)):
                results = self._workplace.work(partial(self._explaining.explain, part))
        except Exception as error:
            # What follows happens after this block, when the traceback has let go of the tensors.
            problem: Exception
            if isinstance(error, LrpError) or is_out_of_memory(error):
                problem = error.with_traceback(None)
            else:  # code of the model's own may raise anything
                traceback.clear_frames(error.__traceback__)
                problem = model_failure(error)
        else:
            self._has_worked = True
            return results
        if is_out_of_memory(problem):
            problem.__context__ = problem.__cause__ = None  # they hold tensors, too
            has_room = self._make_room()
            if len(part) > 1:
                if not self._has_shrunk:
                    self.notes.append("out of memory: going on with smaller batches (--batch-size sets their size)")
                    self._has_shrunk = True
                self.batches.shrink(len(part))
                return None
            if has_room or self._explainer.is_keeping:
                if not has_room:
                    self._explainer.stop_keeping()
                return self._try(part)
            return [[failure(part[0], "out of memory, even alone; close other programs, or give a smaller --crop")]]
        if isinstance(problem, ConfigError):
            raise problem
        if len(part) > 1:
            return [self._alone(loaded) for loaded in part]
        return [self._refused(part[0], problem)]

    def _make_room(self) -> bool:
        """Hand back what is free within this process, and go on in a new thread; return whether there may be room."""
        if self._settings.device.type == "cuda":
            torch.cuda.empty_cache()
            return False
        has_room = make_room()
        self._workplace.renew()
        return has_room

    def _alone(self, loaded: Loaded) -> Results:
        """Explain one picture of a batch that failed: its neighbours are not to suffer."""
        results = self._try([loaded])
        assert results is not None  # noqa: S101 (one picture is never divided)
        return results[0]

    def _refused(self, loaded: Loaded, problem: Exception) -> Results:
        if isinstance(problem, EngineError) and not self._has_worked:
            self._refusals.append(problem)
            if len(self._refusals) >= MOST_REFUSALS:
                raise problem
        lines = str(problem).splitlines() or [type(problem).__name__]
        return [failure(loaded, lines[0])]
