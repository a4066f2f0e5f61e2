"""Products and quotients of two activations: gates are held constant, otherwise each operand gets half."""

from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.books import NORMALISATION
from lrp_cli.engine.naming import arguments
from lrp_cli.engine.operations.activations import identity_rule
from lrp_cli.engine.operations.linear import product_with_weight
from lrp_cli.engine.operations.unknown import booked, unknown
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import tagged, tensors_in


class Scaled(torch.autograd.Function):
    """Nothing forward; backward, the relevance times a factor."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, factor: float) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.factor = factor
        return t.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        return (None if g is None else g * ctx.factor), None


def bilinear(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """A product that is linear in each of two operands: ``a * b``, ``a @ b``, ``einsum``.

    A gate (what came out of a sigmoid, softmax or the like) is held constant, and the other operand gets all the
    relevance; where neither is a gate, or both, each gets half. With one operand constant the operation is linear.
    Under AttnLRP the softmax of an attention is no gate for matrix products (Achtibat et al. 2024, section 3.3).
    """
    carriers = [tensor for tensor in tensors_in((args, kwargs)) if run.carries(tensor)]
    if len(carriers) == 1:
        return function(*args, **kwargs)
    if len(carriers) > 2:
        return unknown(run, function, args, kwargs)
    gates = [run.is_gate(tensor) for tensor in carriers]
    if gates[0] != gates[1] and not _is_attention(run, function):
        gate = carriers[0] if gates[0] else carriers[1]
        args = tuple(_held(a, gate) for a in args)
        return function(*args, **kwargs)
    product: Tensor = Scaled.apply(function(*args, **kwargs), 0.5)
    return product


def _held(value: Any, gate: Tensor) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_held(item, gate) for item in value)
    return value.detach() if value is gate else value


def _is_attention(run: Run, function: Any) -> bool:
    return run.attention == "attnlrp" and function.__name__.strip("_") not in {"mul", "imul", "rmul", "multiply"}


def matmul(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``a @ b``; with a constant matrix on the right it is a linear layer."""
    x, weight = args[:2] if function.__name__ != "__rmatmul__" else args[1::-1]
    if run.carries(x) and isinstance(weight, Tensor) and not run.carries(weight) and weight.dim() == 2 and x.dim() > 1:
        return product_with_weight(run, x, weight)
    return bilinear(run, function, args, kwargs)


def divide(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``a / b``: the denominator is a scale, held constant (Ali et al. 2022)."""
    reflected = function.__name__ in {"__rdiv__", "__rtruediv__"}
    numerator, denominator = args[1::-1] if reflected else args[:2]
    if not run.carries(denominator):
        return function(*args, **kwargs)
    if not run.carries(numerator):
        return scale(run, function, args, kwargs)
    return torch.div(numerator, denominator.detach(), **kwargs)


def scale(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``1 / x``, ``rsqrt(x)``: a scale for other activations, and so a gate; no rule of its own is known."""
    result = unknown(run, function, args, kwargs)
    for tensor in tensors_in(result):
        tagged(tensor, run).is_gate = True
    return result


def power(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``x ** n``: the identity rule; for n < 0 a scale."""
    exponent = args[1] if len(args) > 1 else kwargs["exponent"]
    if isinstance(exponent, Tensor) or function.__name__ == "__rpow__":
        return unknown(run, function, args, kwargs)
    return (scale if exponent < 0 else identity_rule)(run, function, args, kwargs)


def glu(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.glu``: one half of the channels, weighed by the sigmoid of the other, which is held constant."""
    a = arguments(("input", "dim"), args, kwargs)
    value, gates = a["input"].chunk(2, dim=a.get("dim", -1))
    return value * gates.detach().sigmoid()


def log_softmax(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """Logarithm of softmax: its gradient; what that does not hand on is booked."""
    return booked(run, function, args, kwargs, NORMALISATION)


def softmax(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """Softmax: a gate; the plain gradient is its first-order Taylor expansion, whose offset is booked.

    R_i = x_i (R_i - s_i sum_j R_j): AttnLRP, Achtibat et al. 2024, proposition 3.1.
    """
    y = booked(run, function, args, kwargs, NORMALISATION)
    tagged(y, run).is_gate = True
    return y
