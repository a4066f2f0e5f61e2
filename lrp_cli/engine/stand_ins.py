"""Tensors that stand for others, of which nothing but the layout is read, and take no memory."""

import torch
from torch import Tensor


def hollow(shape: torch.Size, like: Tensor) -> Tensor:
    """Return a tensor of a shape, of the type and device of another one, that is NaN everywhere.

    For torch's operations that ask for a tensor, and read its shape.
    """
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(shape)


def valueless(tensor: Tensor) -> Tensor:
    """Return a tensor of the layout of another one that has no values: reading them is an error."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
