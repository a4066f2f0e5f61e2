"""A batch of pictures through the network: every target of every picture explained."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lrp_cli.errors import ConfigError, EngineError, LrpError
from lrp_cli.explainer import Explainer, ForwardPass
from lrp_cli.images.decoding import read_picture
from lrp_cli.images.mapping import Mapping
from lrp_cli.models import LoadedModel, Target
from lrp_cli.runs.naming import Score, output_path
from lrp_cli.runs.outputs import Explained
from lrp_cli.runs.pictures import Picture
from lrp_cli.runs.records import Failure, Record
from lrp_cli.runs.settings import Settings
from lrp_cli.runs.targets import is_single, settle

MOST_REFUSALS = 4
"""So many pictures are tried in a row before a model is given up that has explained none."""


@dataclass(frozen=True)
class Loaded:
    """A picture ready for the network: what it sees, as pixels and as a tensor (3, H, W), and where that comes from."""

    picture: Picture
    view: Image.Image
    tensor: Tensor
    mapping: Mapping
    targets: tuple[Target, ...]
    settings: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Unwritten:
    """A result whose outputs are still to be written."""

    record: Record
    explained: Explained


class Network:
    """Explains batches; a batch that does not fit in the memory, or of which one picture fails, is divided.

    Attributes:
        batch_size: how many pictures go through at once; less after the memory ran out.
        notes: what the user should know, to be fetched and cleared.
    """

    def __init__(self, model: LoadedModel, explainer: Explainer, settings: Settings) -> None:
        self.batch_size = settings.batch_size
        self.notes: list[str] = []
        self._model = model
        self._explainer = explainer
        self._settings = settings
        self._dtype = next((p.dtype for p in model.network.parameters() if p.is_floating_point()), torch.float32)
        self._has_worked = False
        self._refusals: list[EngineError] = []

    def explain(self, batch: Sequence[Loaded]) -> list[list[Unwritten | Failure]]:
        """Explain pictures of one size; returns the results of each.

        Raises:
            LrpError: what concerns no single picture: the config does not fit, or the model cannot be explained.
        """
        results: list[list[Unwritten | Failure]] = []
        start = 0
        while start < len(batch):
            part = batch[start : start + self.batch_size]
            done = self._try(part)
            if done is not None:
                results += done
                start += len(part)
        return results

    def raise_if_refused(self) -> None:
        """Raise what stopped every single picture, if the engine could not explain any.

        Raises:
            EngineError: the model cannot be explained.
        """
        if self._refusals and not self._has_worked:
            raise self._refusals[-1]

    def _try(self, part: Sequence[Loaded]) -> list[list[Unwritten | Failure]] | None:
        """Return the results, or None where the part is to be tried again in smaller ones."""
        try:
            results = self._explain(part)
        except (LrpError, RuntimeError, MemoryError) as error:
            # What follows happens after this block, when the traceback has let go of the tensors.
            problem = error.with_traceback(None)
        else:
            self._has_worked = True
            return results
        if _is_out_of_memory(problem):
            problem.__context__ = problem.__cause__ = None  # they hold tensors, too
            if self._settings.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(part) > 1:
                if not self.notes and self.batch_size == self._settings.batch_size:
                    self.notes.append("out of memory: going on with smaller batches (--batch-size sets their size)")
                self.batch_size = max(1, len(part) // 2)
                return None
            return [[self._failure(part[0], "out of memory, even alone")]]
        if isinstance(problem, ConfigError):
            raise problem
        if len(part) > 1:
            return [self._alone(loaded) for loaded in part]
        return [self._refused(part[0], problem)]

    def _alone(self, loaded: Loaded) -> list[Unwritten | Failure]:
        """Explain one picture of a batch that failed: its neighbours are not to suffer."""
        results = self._try([loaded])
        assert results is not None  # noqa: S101 (one picture is never divided)
        return results[0]

    def _refused(self, loaded: Loaded, problem: Exception) -> list[Unwritten | Failure]:
        if isinstance(problem, EngineError) and not self._has_worked:
            self._refusals.append(problem)
            if len(self._refusals) >= MOST_REFUSALS:
                raise problem
        lines = str(problem).splitlines() or [type(problem).__name__]
        return [self._failure(loaded, lines[0])]

    def _failure(self, loaded: Loaded, reason: str) -> Failure:
        return Failure(loaded.picture.path, f"{loaded.picture.path}: {reason}")

    def _explain(self, part: Sequence[Loaded]) -> list[list[Unwritten | Failure]]:
        begun = time.perf_counter()
        asked = [loaded.targets for loaded in part]
        forward = self._explainer.forward(self._stack(part), single=is_single(asked))
        wanted = settle(asked, forward.logits)
        results: list[list[Unwritten | Failure]] = [
            [self._failure(loaded, problem) for problem in scores.problems]
            for loaded, scores in zip(part, wanted, strict=True)
        ]
        rounds = max(len(scores.scores) for scores in wanted)
        for turn in range(rounds):
            # A picture with fewer targets than the others goes along with any, and is not counted.
            scores = [(of.scores[turn : turn + 1] or of.scores[:1] or (Score(0),))[0] for of in wanted]
            explained = self._explain_scores(part, forward, scores, begun, keep=turn + 1 < rounds)
            for number, unwritten in enumerate(explained):
                if turn < len(wanted[number].scores):
                    results[number].append(unwritten)
            begun = time.perf_counter()
        return results

    def _stack(self, part: Sequence[Loaded]) -> Tensor:
        x = torch.stack([loaded.tensor for loaded in part]).to(self._dtype)
        if self._settings.device.type == "cuda":
            return x.pin_memory().to(self._settings.device, non_blocking=True)
        return x.to(self._settings.device)

    def _explain_scores(
        self, part: Sequence[Loaded], forward: ForwardPass, scores: Sequence[Score], begun: float, *, keep: bool
    ) -> Iterator[Unwritten]:
        explanation = forward.explain(
            [score.target for score in scores],
            versus=[score.versus for score in scores],
            seed=self._settings.seed,
            keep=keep,
        )
        probabilities = forward.logits.softmax(dim=1)
        chosen = probabilities[torch.arange(len(part)), [score.target for score in scores]]
        relevance = explanation.relevance.float().cpu().numpy()
        numbers = (explanation.scores, chosen, explanation.relevance_sum, explanation.absorbed_sum)
        score, probability, reached, absorbed = (values.tolist() for values in numbers)
        seconds = (time.perf_counter() - begun) / len(part)
        for place, (loaded, of) in enumerate(zip(part, scores, strict=True)):
            record = Record(
                image=loaded.picture.path,
                model=self._model.name,
                weights=self._model.weights,
                config=self._explainer.config.name,
                target=of.target,
                label=self._model.labels[of.target],
                versus=of.versus,
                seed=self._settings.seed,
                score=score[place],
                probability=probability[place],
                relevance_sum=reached[place],
                absorbed_sum=absorbed[place],
                outputs=self._outputs(loaded.picture.stem, of),
                seconds=round(seconds, 6),
            )
            yield Unwritten(record, self._rendering(loaded, record, relevance[place]))

    def _outputs(self, stem: PurePath, score: Score) -> dict[str, Path]:
        labels, directory = self._model.labels, self._settings.directory
        return {kind: output_path(directory, stem, score, labels, kind) for kind in self._settings.kinds}

    def _rendering(self, loaded: Loaded, record: Record, relevance: npt.NDArray[np.float32]) -> Explained:
        label = record.label
        if record.versus is not None:
            label += f" vs {record.versus if isinstance(record.versus, str) else self._model.labels[record.versus]}"
        picture = loaded.picture
        return Explained(
            view=loaded.view,
            relevance=relevance,
            label=label,
            score=record.score,
            probability=record.probability,
            model=record.model,
            config=record.config,
            mapping=loaded.mapping,
            # Read again when it is drawn on, so that no more than a few whole pictures are in memory.
            original=(lambda: read_picture(picture.path, picture.data).image) if self._settings.full else None,
        )


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said.lower() or "DefaultCPUAllocator" in said)
    )
