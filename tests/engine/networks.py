"""Networks made ready for a hard test, and what every network is tested for."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from lrp_cli.explainer import Explainer, Explanation
from lrp_cli.rulesets import NamedRuleset, Ruleset

BOUNDS = (-2.5, 2.5)
"""The range of the inputs that :func:`inputs` makes."""

BALANCE = {torch.float64: 1e-10, torch.float32: 1e-3}
"""How far the books may be out of balance, in proportion to the score."""

FORWARD = {torch.float64: 1e-12, torch.float32: 1e-5}
"""How far the logits may be from those of the plain model, in proportion to the largest."""


def ruleset(*layers: dict[str, Any], attention: str = "cp-lrp") -> NamedRuleset:
    """Return a config with these entries."""
    content = {"layers": list(layers), "attention": attention}
    return NamedRuleset("test", Path("test.yaml"), Ruleset.model_validate(content), "")


LRP0 = ruleset({"rule": "lrp-0"})
LRP0_ATTNLRP = ruleset({"rule": "lrp-0"}, attention="attnlrp")


def inputs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a batch of any sign within BOUNDS."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).clamp(*BOUNDS).to(dtype)


def build(make: Callable[[], nn.Module], batch: Tensor | None = None, *, seed: int = 0) -> nn.Module:
    """Return a network in eval mode in which nothing is trivial.

    Biases, gains, layer scales, class tokens and whatever else starts as zero or as one value all over gets values of
    its own, and batch norms the statistics of ``batch``, without which they are random.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = make()
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or bool((parameter == parameter.flatten()[0]).all()):
                # Large biases would take the score all to themselves.
                parameter.add_(torch.randn_like(parameter) * (0.02 if "bias" in name else 0.1))
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
        for norm in norms:
            norm.running_mean.normal_(std=0.5)
            norm.running_var.uniform_(0.5, 2)
            norm.momentum = None  # the statistics of this one batch
        model.eval()
        if batch is not None and norms:
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            model(batch.to(next(model.parameters()).dtype))
        return model.eval()


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that explaining it must not change, comparable by ``==``."""
    return {
        "state": {
            name: (id(tensor), tensor._version, hash(tensor.detach().numpy().tobytes()))
            for name, tensor in model.state_dict(keep_vars=True).items()
        },
        "gradients": {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()},
        "training": [module.training for module in model.modules()],
        "hooks": [
            {key: list(value) for key, value in vars(module).items() if key.endswith("_hooks")}
            for module in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "notes": [sorted(vars(tensor)) for tensor in [*model.parameters(), *model.buffers()]],
        "global hooks": [
            list(value) for key, value in vars(torch_hooks).items() if key.startswith("_global_") and value
        ],
        "modes": (torch.is_grad_enabled(), len(torch.overrides._get_current_function_mode_stack())),
    }


@dataclass(frozen=True)
class Case:
    """A network, and a batch for it."""

    model: nn.Module
    x: Tensor


def case(make: Callable[[], nn.Module], *shape: int, seed: int = 0) -> Case:
    """Return a network in float64 with a batch of this shape."""
    x = inputs(*shape, seed=seed)
    return Case(build(lambda: make().double(), inputs(8, *shape[1:], seed=seed + 1), seed=seed), x)


def explain(network: Case, config: str | NamedRuleset = "epsilon", target: Any = None, **options: Any) -> Explanation:
    """Explain a network's scores for its batch."""
    return Explainer(network.model, config, bounds=BOUNDS, **options).explain(network.x, target)


def plain_logits(network: Case) -> Tensor:
    """Return what the network computes without the engine, gradients enabled: without, torch may take other paths."""
    return network.model(network.x).detach()


def assert_right(explanation: Explanation, network: Case) -> None:
    """Assert that the forward pass is the plain model's, that all is finite, and that each sample's books balance."""
    logits, dtype = plain_logits(network), network.x.dtype
    assert (explanation.logits - logits).abs().max() <= FORWARD[dtype] * logits.abs().max()
    assert explanation.relevance.shape == network.x.shape
    assert explanation.relevance.isfinite().all()
    for absorbed in explanation.absorbed.values():
        assert absorbed.shape == (len(network.x),)
        assert absorbed.isfinite().all()
    assert explanation.relevance.abs().sum() > 0
    imbalance = explanation.scores.double() - explanation.relevance_sum - explanation.absorbed_sum
    assert (imbalance.abs() <= BALANCE[dtype] * explanation.scores.abs()).all(), imbalance / explanation.scores


def amplification(explanation: Explanation) -> float:
    """Return the largest sum of |relevance| over a sample, in proportion to its score."""
    return (explanation.relevance.abs().flatten(1).sum(1) / explanation.scores.abs()).max().item()


def assert_samples_independent(network: Case, config: str | NamedRuleset, tolerance: float, **options: Any) -> None:
    """Assert that a sample's relevance and books are the same alone as they are in its batch."""
    explainer = Explainer(network.model, config, bounds=BOUNDS, **options)
    together = explainer.explain(network.x)
    for n in range(len(network.x)):
        alone = explainer.explain(network.x[n : n + 1], target=int(together.target[n]))
        assert alone.absorbed.keys() == together.absorbed.keys()
        size = alone.relevance.abs().max()
        assert (alone.relevance[0] - together.relevance[n]).abs().max() <= tolerance * size
        scale = alone.scores.abs().item() + sum(absorbed.abs().item() for absorbed in alone.absorbed.values())
        for layer, absorbed in alone.absorbed.items():
            assert abs(absorbed.item() - together.absorbed[layer][n].item()) <= tolerance * scale, layer


def assert_twins(a: Explanation, b: Explanation, *, rtol: float = 1e-9) -> None:
    """Assert that two ways of writing one function have the same logits, relevance and sum of the books."""
    torch.testing.assert_close(a.logits, b.logits, rtol=1e-12, atol=1e-12)
    size = b.relevance.abs().max().item()
    assert size > 0
    torch.testing.assert_close(a.relevance, b.relevance, rtol=rtol, atol=1e-10 * size)
    torch.testing.assert_close(a.absorbed_sum, b.absorbed_sum, rtol=rtol, atol=1e-9 * size)


def in_single_precision(network: Case) -> Case:
    """Return the same network and batch in float32."""
    return Case(copy.deepcopy(network.model).float(), network.x.float())
