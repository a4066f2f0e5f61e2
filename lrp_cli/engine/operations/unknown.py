"""Operations that no rule is known for: proven harmless, or refused where relevance would have to pass through."""

from typing import Any

import torch
from torch import Tensor

from lrp_cli.engine.books import UNKNOWN, Account
from lrp_cli.engine.naming import operation_name
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import tensors_in, with_tensors
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
    carriers = [tensor for tensor in tensors_in((args, kwargs)) if run.carries(tensor)]
    result = function(*args, **kwargs)
    outputs = [tensor for tensor in tensors_in(result) if run.carries(tensor)]
    if not outputs or _is_homogeneous(carriers, outputs):
        return result
    if run.on_unknown == "gradient":
        return booked(run, function, args, kwargs, UNKNOWN)
    refusal = _refusal(operation_name(function), run.modules.name, run.modules.class_name)
    return with_tensors(result, lambda t: _Refused.apply(t, refusal) if run.carries(t) else t)


def _is_homogeneous(carriers: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether ``f(x) = f'(x) x`` holds for a random weighting of the outputs."""
    generator = torch.Generator().manual_seed(0)
    weightings = [torch.rand(t.shape, generator=generator, dtype=torch.float64).to(t) + 0.5 for t in outputs]
    try:
        gradients = torch.autograd.grad(outputs, carriers, weightings, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return False
    weighted = [(w * t.detach()).double() for w, t in zip(weightings, outputs, strict=True)]
    projected = [(t.detach() * g).double() for t, g in zip(carriers, gradients, strict=True) if g is not None]
    difference = sum(w.sum().item() for w in weighted) - sum(p.sum().item() for p in projected)
    return abs(difference) <= TOLERANCE * sum(w.abs().sum().item() for w in weighted)


def booked(run: Run, function: Any, args: Any, kwargs: Any, kind: str) -> Any:
    """Execute an operation with its plain gradient; the relevance that it does not hand on is booked under ``kind``."""
    account = run.account()
    entered = with_tensors((args, kwargs), lambda t: _Booked.apply(t, run, account, kind, -1) if run.carries(t) else t)
    result = function(*entered[0], **entered[1])
    return with_tensors(result, lambda t: _Booked.apply(t, run, account, kind, 1) if run.carries(t) else t)


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
            run.books.book(account, kind, sign * ctx.t * g)
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


def _refusal(operation: str, layer: str, class_name: str) -> str:
    return (
        f"no rule is known for the operation '{operation}' in {layer} ({class_name}); "
        "on_unknown='gradient' (--on-unknown gradient) passes relevance on by its plain gradient and books the rest"
    )
