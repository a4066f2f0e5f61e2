"""How many pictures go through the network at once: as many as are asked for, or as fit into the memory of a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ON_A_PROCESSOR = 8
"""How many pictures at once where nobody asks for another number: on a processor more are no faster."""

FIRST = 8
"""How many pictures at once on a GPU, until it is known how much memory they take."""

MOST = 64
"""How many pictures at once on a GPU at most, where nobody asks for more."""

ROOM = 0.8
"""Which part of a GPU's free memory a batch may take: pictures differ, and memory falls into pieces."""


class Batches:
    """How large batches are to be.

    Attributes:
        size: how many pictures at once, as of now.
        most: how many it may become.
    """

    def __init__(self, asked: int | None, device: torch.device) -> None:
        """Begin with the number that is asked for; None: what suits the device."""
        is_gpu = device.type == "cuda"
        self.most = asked or (MOST if is_gpu else ON_A_PROCESSOR)
        self.size = min(self.most, FIRST) if asked is None else asked
        self._grows = is_gpu and asked is None
        self._device = device

    @contextmanager
    def watched(self, count: int) -> Iterator[None]:
        """Explain a batch of so many pictures meanwhile: the first full one shows how many more there is room for."""
        if not self._grows or count < self.size:
            yield
            return
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        yield
        taken = torch.cuda.max_memory_allocated(self._device) - before
        self.size = min(self.most, max(count, _power_of_two(count * ROOM * _free(self._device) / max(taken, 1))))
        self._grows = False

    def shrink(self, count: int) -> None:
        """Note that so many pictures did not fit."""
        self.size = max(1, count // 2)
        self._grows = False


def _free(device: torch.device) -> int:
    """Return how many bytes of a GPU's memory are free, those that torch holds for later included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _power_of_two(number: float) -> int:
    """Return the largest power of two that is no larger than a number, and 1 for less: few sizes, few programs."""
    return 1 << max(int(number).bit_length() - 1, 0)
