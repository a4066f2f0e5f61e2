"""A run: pictures are decoded ahead, explained in batches and written behind, in order."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import torch
from PIL import Image
from torch import Tensor

from lrp_cli.errors import ImageError, LrpError
from lrp_cli.explainer import Explainer, ForwardPass
from lrp_cli.images.decoding import decode
from lrp_cli.models import ClassIndex, LoadedModel, Target, Top
from lrp_cli.runs.naming import output_path
from lrp_cli.runs.outputs import Explained, write
from lrp_cli.runs.prefetch import in_order
from lrp_cli.runs.records import Failure, Record


@dataclass(frozen=True)
class Settings:
    """What to do with each picture.

    Attributes:
        targets: which scores to explain.
        kinds: what to write.
        directory: where to.
        batch_size: how many pictures go through the network at once.
        device: where the network runs.
    """

    targets: tuple[Target, ...]
    kinds: tuple[str, ...]
    directory: Path
    batch_size: int = 8
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class _Loaded:
    image: Path
    view: Image.Image
    tensor: Tensor


@dataclass(frozen=True)
class _Unwritten:
    record: Record
    explained: Explained


class Pipeline:
    """Explains pictures with one model and one config."""

    def __init__(self, model: LoadedModel, explainer: Explainer, settings: Settings) -> None:
        self.model = model
        self.explainer = explainer
        self.settings = settings

    def run(self, stems: dict[Path, PurePath]) -> Iterator[Record | Failure]:
        """Explain pictures, given as path -> what their outputs' names begin with; yields results in order.

        Raises:
            LrpError: nothing that concerns one picture alone: the config, the model, the output directory.
        """
        ahead = 2 * self.settings.batch_size
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as executor:
            loaded = in_order(executor, self._load, stems, ahead)
            explained = (item for batch in self._batches(loaded) for item in self._explain(batch, stems))
            yield from in_order(executor, self._write, explained, ahead)

    def _load(self, image: Path) -> _Loaded | Failure:
        preprocessing = self.model.preprocessing
        try:
            view = preprocessing.view(decode(image))
        except ImageError as error:
            return Failure(image, str(error))
        return _Loaded(image, view, preprocessing.tensor(view))

    def _batches(self, items: Iterable[_Loaded | Failure]) -> Iterator[list[_Loaded | Failure]]:
        """Group consecutive pictures of one size; failures keep their place in the order."""
        batch: list[_Loaded | Failure] = []
        for item in items:
            pictures = [member for member in batch if isinstance(member, _Loaded)]
            differs = isinstance(item, _Loaded) and pictures and pictures[0].tensor.shape != item.tensor.shape
            if differs or len(batch) >= self.settings.batch_size:
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    def _explain(
        self, batch: Sequence[_Loaded | Failure], stems: dict[Path, PurePath]
    ) -> Iterator[_Unwritten | Failure]:
        pictures = [item for item in batch if isinstance(item, _Loaded)]
        explained = dict(zip((p.image for p in pictures), self._explain_pictures(pictures, stems), strict=True))
        for item in batch:
            if isinstance(item, Failure):
                yield item
            else:
                yield from explained[item.image]

    def _explain_pictures(self, pictures: Sequence[_Loaded], stems: dict[Path, PurePath]) -> list[list[_Unwritten]]:
        if not pictures:
            return []
        x = torch.stack([picture.tensor for picture in pictures]).to(self.settings.device)
        forward = self.explainer.forward(x)
        wanted = _classes(self.settings.targets, forward.logits)
        results: list[list[_Unwritten]] = [[] for _ in pictures]
        rounds = max(len(classes) for classes in wanted)
        for turn in range(rounds):
            # A picture whose targets coincide has fewer of them: it goes along with the first and is not counted.
            targets = [classes[turn] if turn < len(classes) else classes[0] for classes in wanted]
            for number, unwritten in enumerate(
                self._explain_targets(pictures, forward, targets, stems, turn + 1 < rounds)
            ):
                if turn < len(wanted[number]):
                    results[number].append(unwritten)
        return results

    def _explain_targets(
        self,
        pictures: Sequence[_Loaded],
        forward: ForwardPass,
        targets: list[int],
        stems: dict[Path, PurePath],
        more: bool,
    ) -> Iterator[_Unwritten]:
        explanation = forward.explain(targets, keep=more)
        probabilities = forward.logits.softmax(dim=1)
        relevance = explanation.relevance.float().cpu().numpy()
        scores, reached, absorbed = (
            values.tolist() for values in (explanation.scores, explanation.relevance_sum, explanation.absorbed_sum)
        )
        for number, (picture, target) in enumerate(zip(pictures, targets, strict=True)):
            label = self.model.labels[target]
            record = Record(
                image=picture.image,
                model=self.model.name,
                weights=self.model.weights,
                config=self.explainer.config.name,
                target=target,
                label=label,
                score=scores[number],
                probability=probabilities[number, target].item(),
                relevance_sum=reached[number],
                absorbed_sum=absorbed[number],
                outputs={
                    kind: output_path(self.settings.directory, stems[picture.image], target, label, kind)
                    for kind in self.settings.kinds
                },
            )
            yield _Unwritten(
                record,
                Explained(
                    view=picture.view,
                    relevance=relevance[number],
                    label=label,
                    score=record.score,
                    probability=record.probability,
                    model=record.model,
                    config=record.config,
                ),
            )

    def _write(self, item: _Unwritten | Failure) -> Record | Failure:
        if isinstance(item, Failure):
            return item
        try:
            for kind, path in item.record.outputs.items():
                write(item.explained, kind, path)
        except LrpError as error:
            return Failure(item.record.image, str(error))
        return item.record


def _classes(targets: Sequence[Target], logits: Tensor) -> list[list[int]]:
    """Return the classes to explain for each sample, each once, in the order they were asked for."""
    wanted: list[list[int]] = [[] for _ in logits]
    for target in targets:
        if isinstance(target, ClassIndex):
            chosen = [[target.index]] * len(logits)
        else:
            count = target.count if isinstance(target, Top) else 1
            chosen = logits.topk(count, dim=1).indices.tolist()
        for classes, more in zip(wanted, chosen, strict=True):
            classes.extend(index for index in more if index not in classes)
    return wanted
