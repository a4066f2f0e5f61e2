"""How many pictures go through the network at once. What a GPU says of its memory is made up here."""

import pytest
import torch

from lrp_cli.runs import batches
from lrp_cli.runs.batches import Batches

MIB = 2**20
CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Memory:
    """A GPU's memory: so much in all, of which explanations take so much a picture."""

    def __init__(self, total: int, each: int) -> None:
        self.total, self.each, self.peak = total, each, 0
        self.held = 100 * MIB

    def explain(self, count: int) -> None:
        self.peak = self.held + count * self.each


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    made = Memory(0, 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: made.held)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: made.held + 50 * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: made.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (made.total - made.held - 50 * MIB, made.total))
    return made


def test_on_a_processor_eight() -> None:
    found = Batches(None, CPU)
    with found.watched(8):
        pass
    assert (found.size, found.most) == (8, 8)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_as_many_as_are_asked_for(device: torch.device) -> None:
    found = Batches(100, device)
    with found.watched(100):  # asks no GPU, of which there is none here
        pass
    assert (found.size, found.most) == (100, 100)


@pytest.mark.parametrize(
    ("total", "expected"),
    [(100_000, 64), (4_100, 32), (4_099, 16), (2_100, 16), (1_000, 8), (10, 8)],
)
def test_what_fits_into_eight_tenths_of_what_is_free(memory: Memory, total: int, expected: int) -> None:
    """Of ``total`` MiB the process holds 100; a picture takes 100."""
    memory.total, memory.each = total * MIB, 100 * MIB
    found = Batches(None, GPU)
    assert (found.size, found.most) == (8, 64)
    with found.watched(8):
        memory.explain(8)
    assert found.size == expected
    with found.watched(expected):
        memory.explain(1000)
    assert found.size == expected


def test_what_is_kept_for_later_counts_in_favour_of_caution(memory: Memory) -> None:
    memory.total, memory.each = 100_000 * MIB, MIB
    found = Batches(None, GPU)
    with found.watched(8):
        memory.explain(8)
        memory.peak += 40_000 * MIB
    assert found.size == 8 * 1  # 40,008 MiB for 8 pictures


def test_a_small_batch_shows_nothing(memory: Memory) -> None:
    memory.total, memory.each = 100_000 * MIB, 100 * MIB
    found = Batches(None, GPU)
    with found.watched(7):
        memory.explain(7)
    assert found.size == batches.FIRST
    with found.watched(8):
        memory.explain(8)
    assert found.size == batches.MOST


def test_what_failed_shows_nothing_and_what_did_not_fit_is_halved(memory: Memory) -> None:
    memory.total, memory.each = 100_000 * MIB, 100 * MIB
    found = Batches(None, GPU)
    with pytest.raises(MemoryError), found.watched(8):
        raise MemoryError
    assert found.size == 8
    found.shrink(8)
    assert found.size == 4
    with found.watched(4):
        memory.explain(4)
    assert found.size == 4  # it does not grow any more
    for _ in range(3):
        found.shrink(found.size)
    assert found.size == 1
