"""Operations that no rule is known for: proven harmless, or refused where relevance would have to pass through."""

from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.books import UNKNOWN, Account
from lrp_cli.engine.naming import operation_name
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import tagged, tensors_in, with_tensors
from lrp_cli.errors import EngineError

TOLERANCE = 1e-4


def unknown(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """Execute an operation without a rule.

    The gradient form conserves relevance through every operation that is homogeneous of degree one at its input
    (Euler: ``f(x) = f'(x) x``): linear and shape operations, maxima, norms. Where a random projection shows that it is,
    the operation passes. Else it is an error as soon as relevance arrives there (an operation that only computes
    gates, statistics or masks never sees any), or, with ``on_unknown="gradient"``, the plain gradient hands it on and
    what is not conserved is booked.
    """
    result = function(*args, **kwargs)
    outputs = [tensor for tensor in tensors_in(result) if run.carries(tensor)]
    if not outputs or _is_homogeneous(run, function, args, kwargs):
        return result
    if run.on_unknown == "gradient":
        return booked(run, function, args, kwargs, UNKNOWN)
    message = refusal(f"the operation '{operation_name(function)}'", run.modules.name, run.modules.class_name)
    return with_tensors(result, lambda t: _Refused.apply(t, message) if run.carries(t) else t)


def _is_homogeneous(run: Run, function: Any, args: Any, kwargs: Any) -> bool:
    """Whether ``f(x) = f'(x) x`` holds for a random weighting of the outputs; apart from the graph of the run."""
    copies = {id(t): t.detach().requires_grad_() for t in tensors_in((args, kwargs)) if run.carries(t)}
    carriers = list(copies.values())
    args, kwargs = with_tensors((args, kwargs), lambda t: copies.get(id(t), t))
    generator = torch.Generator().manual_seed(0)
    try:
        outputs = [tensor for tensor in tensors_in(function(*args, **kwargs)) if tensor.requires_grad]
        weightings = [torch.rand(t.shape, generator=generator, dtype=torch.float64).to(t) + 0.5 for t in outputs]
        gradients = torch.autograd.grad(outputs, carriers, weightings, allow_unused=True)
    except RuntimeError:
        return False
    weighted = [_products(w, t) for w, t in zip(weightings, outputs, strict=True)]
    projected = [_products(t, g) for t, g in zip(carriers, gradients, strict=True) if g is not None]
    tolerance = 1e-9 if all(t.dtype == torch.float64 for t in carriers) else TOLERANCE
    difference = sum(w.sum().item() for w in weighted) - sum(p.sum().item() for p in projected)
    return abs(difference) <= tolerance * sum(w.abs().sum().item() for w in weighted)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return the terms of the real inner product of two tensors, which may be complex."""
    terms = a.detach() * b.detach().conj()
    return (terms.real if terms.is_complex() else terms).double()


def booked(run: Run, function: Any, args: Any, kwargs: Any, kind: str) -> Any:
    """Execute an operation with its plain gradient; the relevance that it does not hand on is booked under ``kind``."""
    carriers = [tensor for tensor in tensors_in((args, kwargs)) if run.carries(tensor)]

    def watched(tensor: Tensor, sign: int) -> Tensor:
        if not run.carries(tensor):
            return tensor
        account = run.account(tensor if sign < 0 else carriers[0])
        passed: Tensor = _Booked.apply(tensor, run, account, kind, sign)
        tagged(passed, run).kept = "any"  # it is the same memory
        return passed

    entered = with_tensors((args, kwargs), lambda t: watched(t, -1))
    return with_tensors(function(*entered[0], **entered[1]), lambda t: watched(t, 1))


class _Booked(torch.autograd.Function):
    """Nothing forward; backward, books the relevance that passes, with a sign."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, run: Run, account: Account, kind: str, sign: int) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.t, ctx.note = run.keep(t), (run, account, kind, sign)
        return t.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if g is not None:
            run, account, kind, sign = ctx.note
            run.books.book_product(account, kind, ctx.t, g, sign)
        return g, None, None, None, None


class _Refused(torch.autograd.Function):
    """Nothing forward; backward, an error: relevance has arrived at an operation that no rule is known for."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, refusal: str) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.refusal = refusal
        return t.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        if gradients[0] is not None:
            raise EngineError(ctx.refusal)
        return None, None


def refusal(operation: str, layer: str, class_name: str) -> str:
    """Return the message that an operation has no rule, given what it is and the module that it is in."""
    return (
        f"no rule is known for {operation} in {layer} ({class_name}); "
        "on_unknown='gradient' (--on-unknown gradient) passes relevance on by its plain gradient and books the rest"
    )
