"""``--threads``: how many processor threads the network takes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lrp_cli.explainer import Explainer

CAT = Path(__file__).resolve().parents[2] / "sample_images/cat.jpg"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collect how many threads torch has whenever a network runs; afterwards torch has as many as before."""
    before = torch.get_num_threads()
    forward = Explainer.forward
    seen: list[int] = []

    def counting(self: Explainer, x: torch.Tensor, **options: object) -> object:
        seen.append(torch.get_num_threads())
        return forward(self, x, **options)

    monkeypatch.setattr(Explainer, "forward", counting)
    yield seen
    torch.set_num_threads(before)


@pytest.mark.parametrize("command", ["explain", "inspect"])
def test_the_network_runs_with_as_many_threads_as_asked_for(
    lrp, tmp_path: Path, counts: list[int], command: str
) -> None:
    options = ("-o", tmp_path, "--force") if command == "explain" else ()
    for threads in (1, 3):
        counts.clear()
        assert lrp(command, CAT, "-c", "epsilon", "--threads", threads, *options).code == 0
        assert set(counts) == {threads}


def test_without_the_option_torch_decides(lrp, tmp_path: Path, counts: list[int]) -> None:
    before = torch.get_num_threads()
    assert lrp.explain(CAT, "-o", tmp_path).code == 0
    assert counts == [before]


@pytest.mark.parametrize("command", ["explain", "inspect"])
@pytest.mark.parametrize("threads", ["0", "-1", "two", "", "1.5", "1025", "9" * 5000])
def test_a_number_that_makes_no_sense_is_wrong_usage_in_one_line(lrp, command: str, threads: str) -> None:
    result = lrp(command, CAT, f"--threads={threads}")
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert "--threads" in line
    assert "from 1 to 1024" in line
