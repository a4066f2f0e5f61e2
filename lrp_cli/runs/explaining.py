"""Pictures that go through the network together, and what comes out: every target of every picture explained."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

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
class Undrawn:
    """A result whose outputs are still to be drawn."""

    record: Record
    explained: Explained


Results: TypeAlias = "list[Undrawn | Failure]"
"""What there is of one picture: for every target a result, or why there is none."""


class Explaining:
    """Explains pictures with one model and one config."""

    def __init__(self, model: LoadedModel, explainer: Explainer, settings: Settings) -> None:
        self._model = model
        self._explainer = explainer
        self._settings = settings
        self._dtype = next((p.dtype for p in model.network.parameters() if p.is_floating_point()), torch.float32)

    def explain(self, pictures: Sequence[Loaded]) -> list[Results]:
        """Explain pictures of one size, all at once; returns the results of each of them.

        Raises:
            LrpError: a picture cannot be explained, or none can.
            RuntimeError, MemoryError: the memory ran out, among others.
        """
        begun = time.perf_counter()
        targets = [loaded.targets for loaded in pictures]
        forward = self._explainer.forward(self._input(pictures), single=is_single(targets))
        wanted = settle(targets, forward.logits)
        results: list[Results] = [
            [failure(loaded, problem) for problem in scores.problems]
            for loaded, scores in zip(pictures, wanted, strict=True)
        ]
        rounds = max(len(scores.scores) for scores in wanted)
        for turn in range(rounds):
            # A picture with fewer targets than the others goes along with any, and is not counted.
            scores = [(of.scores[turn : turn + 1] or of.scores[:1] or (Score(0),))[0] for of in wanted]
            explained = [*self._explain_scores(pictures, forward, scores, keep=turn + 1 < rounds)]
            seconds = round((time.perf_counter() - begun) / len(pictures), 6)
            for result, of, (record, explanation) in zip(results, wanted, explained, strict=True):
                if turn < len(of.scores):
                    result.append(Undrawn(replace(record, seconds=seconds), explanation))
            begun = time.perf_counter()
        return results

    def _input(self, pictures: Sequence[Loaded]) -> Tensor:
        """Return the network's input, shape (N, 3, H, W), on the run's device."""
        shape, is_for_gpu = (len(pictures), *pictures[0].tensor.shape), self._settings.device.type == "cuda"
        x = torch.empty(shape, dtype=torch.float32, pin_memory=is_for_gpu)
        # With numpy: torch would share this out among threads that have better things to do.
        np.stack([loaded.tensor.numpy() for loaded in pictures], out=x.numpy())
        return x.to(self._settings.device, non_blocking=True).to(self._dtype)

    def _explain_scores(
        self, pictures: Sequence[Loaded], forward: ForwardPass, scores: Sequence[Score], *, keep: bool
    ) -> Iterator[tuple[Record, Explained]]:
        explanation = forward.explain(
            [score.target for score in scores],
            versus=[score.versus for score in scores],
            seed=self._settings.seed,
            keep=keep,
        )
        relevance = _begin_to_fetch(explanation.relevance)
        probabilities = forward.logits.softmax(dim=1)
        chosen = torch.arange(len(pictures)), [score.target for score in scores]
        numbers = [explanation.scores, forward.logits[chosen], probabilities[chosen]]
        numbers += [explanation.relevance_sum, explanation.absorbed_sum]
        # Here a GPU is waited for, and relevance has arrived, too.
        score, logit, probability, reached, absorbed = torch.stack([values.double() for values in numbers]).tolist()
        maps = relevance.numpy()
        for place, (loaded, of) in enumerate(zip(pictures, scores, strict=True)):
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
                logit=logit[place],
                probability=probability[place],
                relevance_sum=reached[place],
                absorbed_sum=absorbed[place],
                outputs=self._outputs(loaded.picture.stem, of),
            )
            yield record, self._rendering(loaded, record, maps[place])

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


def _begin_to_fetch(tensor: Tensor) -> Tensor:
    """Return a tensor in the processor's memory, in single precision; from a GPU it arrives once that is waited for."""
    single = tensor.float()
    if tensor.device.type != "cuda":
        return single.cpu()
    return torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True).copy_(single, non_blocking=True)


def failure(loaded: Loaded, reason: str) -> Failure:
    """Return what to say of a picture that could not be explained."""
    return Failure(loaded.picture.path, f"{loaded.picture.path}: {reason}")
