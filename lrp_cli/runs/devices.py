"""What the network runs on: which device, how many threads of a processor, and in which precision."""

import torch
from torch import nn

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
        torch.empty(1, dtype=torch.float64, device=device)  # for the books; Apple's MPS has none
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # then torch lists the devices of an operation
        raise UsageError(f"device {name!r} is not available here ({reason}); give cpu, or auto") from error
    return device


def use_threads(count: int | None) -> None:
    """Have torch work with so many processor threads; None leaves it as it is."""
    if count is not None:
        torch.set_num_threads(count)


def use_precision(network: nn.Module, name: str) -> torch.dtype | None:
    """Put a network into a precision: "float64", "float32" (which leaves it as it is) or "bfloat16".

    Returns:
        The type of the products on the way back, if that is another one than the network's.
    """
    if name == "float64":
        network.double()
    return torch.bfloat16 if name == "bfloat16" else None
