"""Where the network runs: what is said of a device that cannot do it."""

import pytest
import torch

from lrp_cli.errors import UsageError
from lrp_cli.runs.devices import choose_device


def test_a_device_without_double_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Do as torch does on Apple's MPS."""
        if dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as it has none. Please use float32 instead.")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(UsageError, match=r"^device 'mps' is not available here .*as it has none\); give cpu, or auto$"):
        choose_device("mps")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is such a device here")
def test_the_devices_that_torch_lists_are_left_out() -> None:
    with pytest.raises(UsageError) as error:
        choose_device("mps")
    assert len(str(error.value)) < 200
