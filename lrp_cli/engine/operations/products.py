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


class Halved(torch.autograd.Function):
    """``a @ b`` for matrices of one batch: each operand gets half of the relevance.

    The operands are kept as they are, or what they are multiples of. Autograd keeps what it laid out anew for the
    product: of a part of a layer's output, which the layer's rule keeps as a whole, that would be a second copy.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, run: Run) -> Tensor:
        ctx.set_materialize_grads(False)
        (ctx.a, ctx.times_a), (ctx.b, ctx.times_b) = run.keep_multiple(a), run.keep_multiple(b)
        product: Tensor = a.detach() @ b.detach()
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if g is None:
            return None, None, None
        return _product(g, ctx.b.mT, 0.5 * ctx.times_b), _product(ctx.a.mT, g, 0.5 * ctx.times_a), None


def _product(a: Tensor, b: Tensor, times: float) -> Tensor:
    """Return so many times ``a @ b``, for which nothing but the product is gone through."""
    one, other = (t.flatten(0, -3) for t in (a, b))
    product: Tensor = torch.baddbmm(one.new_empty(1, 1, 1), one, other, beta=0, alpha=times)
    return product.view(*a.shape[:-1], b.shape[-1])


def bilinear(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """A product that is linear in each of two operands: ``a * b``, ``a @ b``, ``einsum``.

    A gate (what came out of a sigmoid, softmax or the like) is held constant, and the other operand gets all the
    relevance; where neither is a gate, or both, each gets half. With one operand constant the operation is linear.
    Under AttnLRP the softmax of an attention is no gate for matrix products (Achtibat et al. 2024, section 3.3).
    """
    carriers = [tensor for tensor in tensors_in((args, kwargs)) if run.carries(tensor)]
    if len(carriers) == 1:
        result = function(*args, **kwargs)
        numbers = [value for value in args if isinstance(value, (int, float))]
        if numbers and not kwargs:
            run.note_multiple(result, carriers[0], numbers[0])
        return result
    if len(carriers) > 2:
        return unknown(run, function, args, kwargs)
    gates = [run.is_gate(tensor) for tensor in carriers]
    if gates[0] != gates[1] and not _is_attention(run, function):
        gate = carriers[0] if gates[0] else carriers[1]
        args = tuple(_held(a, gate) for a in args)
        return function(*args, **kwargs)
    product: Tensor
    if _is_product_of_matrices(function, args, kwargs):
        a, b = args[::-1] if function.__name__ == "__rmatmul__" else args
        product = Halved.apply(a, b, run)
    else:
        product = Scaled.apply(function(*args, **kwargs), 0.5)
    return product


def _is_product_of_matrices(function: Any, args: Any, kwargs: Any) -> bool:
    """Whether it is ``a @ b`` for as many matrices ``a`` as ``b``, one or more dimensions counting them."""
    if kwargs or len(args) != 2 or function.__name__.strip("_") not in {"matmul", "rmatmul", "bmm"}:
        return False
    a, b = args
    return bool(a.dim() > 2 and a.shape[:-2] == b.shape[:-2])


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
        result = function(*args, **kwargs)
        if isinstance(denominator, (int, float)) and denominator and not kwargs:
            run.note_multiple(result, numerator, 1 / denominator)
        return result
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


class Softmax(torch.autograd.Function):
    """Softmax with its plain gradient; what that does not hand on is booked.

    Of its result s alone: the gradient g' = s (g - sum_j s_j g_j) adds up to zero over a distribution, and log s is the
    input x but for a constant of the distribution, so that sum_i x_i g'_i = sum_i log(s_i) g'_i.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, run: Run) -> Tensor:
        ctx.set_materialize_grads(False)
        s = torch.softmax(x.detach(), dim)
        ctx.s, ctx.dim, ctx.run, ctx.account = s.detach(), dim, run, run.account(x)
        return s

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if g is None:
            return None, None, None
        s, books = ctx.s, ctx.run.books
        handed_on = torch.ops.aten._softmax_backward_data.default(g, s, ctx.dim, s.dtype)
        books.book(ctx.account, NORMALISATION, g, s)
        logarithm = s.clamp(min=torch.finfo(s.dtype).tiny).log_()  # where s is zero, nothing is handed on
        books.book(ctx.account, NORMALISATION, handed_on, logarithm, times=-1)
        return handed_on, None, None


def softmax(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """Softmax: a gate; the plain gradient is its first-order Taylor expansion, whose offset is booked.

    R_i = x_i (R_i - s_i sum_j R_j): AttnLRP, Achtibat et al. 2024, proposition 3.1.
    """
    a = arguments(("input", "dim"), args, kwargs)
    x, dim = a["input"], a.get("dim")
    types = [value for value in (*args, *kwargs.values()) if isinstance(value, (torch.dtype, type))]
    # In half precision a gradient does not add up to zero.
    is_exact = x.dtype.itemsize >= 4 and all(value == x.dtype for value in types)
    y: Tensor
    if isinstance(dim, int) and is_exact:
        y = Softmax.apply(x, dim, run)
    else:
        y = booked(run, function, args, kwargs, NORMALISATION)
    tagged(y, run).is_gate = True
    return y
