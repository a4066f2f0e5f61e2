"""What the network runs on: which device, and how many threads of a processor."""

import torch

from lrp_cli.errors import UsageError


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` takes a GPU where there is one.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} is not available here ({reason}); give cpu, or auto") from error
    return device


def use_threads(count: int | None) -> None:
    """Have torch work with so many processor threads; None leaves it as it is."""
    if count is not None:
        torch.set_num_threads(count)
