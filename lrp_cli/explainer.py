"""The Python API: explain the scores of a PyTorch classifier."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lrp_cli.engine.books import Books
from lrp_cli.engine.exactness import exactly
from lrp_cli.engine.native import Compiler
from lrp_cli.engine.plans import Plans
from lrp_cli.engine.propagation import Propagation, check_kind
from lrp_cli.engine.trace import Trace
from lrp_cli.engine.weights import WeightCache
from lrp_cli.errors import ConfigError, EngineError, UsageError
from lrp_cli.rulesets import NamedRuleset, load
from lrp_cli.rulesets.assignment import RulesetAssignment
from lrp_cli.rulesets.auto import AUTO, preset_for
from lrp_cli.rulesets.schema import ZBoxSpec
from lrp_cli.seeds import Target, Versus, make_seed

Bounds: TypeAlias = tuple[float | Sequence[float], float | Sequence[float]]
"""The lowest and the highest value of the input: a number each, or one for each channel."""

BALANCE = {torch.float64: 1e-10, torch.float32: 1e-3}
ROUGH_BALANCE = 2e-2
"""How far the books may be out of balance, in proportion to the relevance that was booked; roughly in other types."""


@dataclass(frozen=True)
class Explanation:
    """Where a score comes from.

    For every sample, ``scores = relevance.sum() + absorbed_sum`` up to rounding.

    Attributes:
        relevance: relevance of the input, shape of the input, (N, C, H, W) for pictures, in units of the score.
        scores: the explained scores, shape (N,): the seed times the logits, which is the target's logit by default.
        logits: the model's output, shape (N, classes).
        target: the explained classes, shape (N,); None where a seed was given.
        books: what every layer absorbed, and as what.
    """

    relevance: Tensor
    scores: Tensor
    logits: Tensor
    target: Tensor | None
    books: Books

    @property
    def absorbed(self) -> Mapping[str, Tensor]:
        """Relevance absorbed by each layer (biases, epsilon, constants): layer name -> shape (N,), float64."""
        return self.books.absorbed()

    @property
    def relevance_sum(self) -> Tensor:
        """The relevance that reached the input, shape (N,), float64."""
        return self.relevance.flatten(1).sum(dim=1, dtype=torch.float64)

    @property
    def absorbed_sum(self) -> Tensor:
        """The relevance that did not reach the input, shape (N,), float64."""
        return self.books.total().to(self.scores.device)  # empty books are on no device

    @property
    def imbalance(self) -> Tensor:
        """Score minus the relevance that is accounted for, shape (N,), float64: zero up to rounding."""
        return self.scores.double() - self.relevance_sum - self.absorbed_sum


class Explainer:
    """Explains a classifier by Layer-wise Relevance Propagation.

    The model is left exactly as it is: parameters, buffers, hooks, training flags and ``requires_grad``. It is run in
    arithmetic as exact as its type (:mod:`lrp_cli.engine.exactness`), whatever torch is set to. Weights that a rule
    transforms are kept, large ones from the second forward pass on, and made anew where a parameter was changed; a
    change through ``parameter.data`` leaves no trace, so make a new explainer after one. A model that computes
    something else for an input of the same shape than it did before is run a second time, once: state of its own counts
    on twice. The Python of models that consist of torch's, torchvision's and timm's modules alone is not run any more
    after some explanations of inputs of one shape (:mod:`lrp_cli.engine.programs`), for as long as they stay as they
    are.

    Attributes:
        model: the model.
        config: the rules.
        compiler: says what was compiled, and why not (:class:`~lrp_cli.engine.native.Compiler`); None unless asked to.

    Example:
        >>> explainer = Explainer(model.eval(), config="epsilon-plus-flat")
        >>> explanation = explainer.explain(x, target=281)
        >>> explanation.relevance.sum() + explanation.absorbed_sum  # = explanation.scores
    """

    def __init__(
        self,
        model: nn.Module,
        config: str | Path | NamedRuleset = AUTO,
        *,
        bounds: Bounds | None = None,
        on_unknown: str = "error",
        products: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        """Prepare to explain ``model``.

        Args:
            model: a module in eval mode that maps (N, ...) to logits (N, classes).
            config: a preset's name, the path of a YAML file, a loaded config, or "auto": the preset that suits the
                kind of network (:mod:`lrp_cli.rulesets.auto`), which ``self.config`` then names.
            bounds: lowest and highest value of the input, for configs with the z-box rule.
            on_unknown: "error", or "gradient" to use the plain gradient for operations that no rule is known for.
            products: type of the matrix products and convolutions on the way back, such as ``torch.bfloat16``, which
                is faster on some processors; the forward pass and the relevance keep the model's type. None: that type.
            compile: whether to compile explanations to machine code, by torch's inductor, once there is a program for
                inputs of a shape (:mod:`lrp_cli.engine.native`): that takes a minute or more, and saves time later on.

        Raises:
            ConfigError: the config does not exist or is not valid, or its z-box rule has no bounds.
            EngineError: the model is no module.
            UsageError: ``config`` or ``on_unknown`` is something else, ``products`` is no floating-point type, the
                bounds are no pair, or there is no C++ compiler to compile with.
        """
        check_kind(model)
        if products is not None and not products.is_floating_point:
            raise UsageError(f"products are computed in a floating-point type, not {products}")
        if on_unknown not in {"error", "gradient"}:
            raise UsageError(f"on_unknown is 'error' or 'gradient', not {on_unknown!r}")
        if not isinstance(config, str | Path | NamedRuleset):
            raise UsageError(f"config is a preset's name, a path or a loaded config, not {config!r}")
        self.model = model
        if config == AUTO:
            config = preset_for(model.modules(), bounded=bounds is not None)
        self.config = config if isinstance(config, NamedRuleset) else load(config)
        self.assignment = RulesetAssignment(self.config)
        self._bounds = _bounds(self.config, bounds)
        self._bounds_by_kind: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._on_unknown = on_unknown
        self._products = products
        self._cache = WeightCache()
        self.compiler = Compiler() if compile else None
        self._plans = Plans(self.compiler)

    def explain(self, x: Tensor, target: Target = None, *, versus: Versus = None, seed: str = "logit") -> Explanation:
        """Explain one score of every sample.

        Args:
            x: input batch, floating point, shape (N, C, H, W) for pictures, (N, ...) in general.
            target: which score; the predicted class by default (:data:`~lrp_cli.seeds.Target`).
            versus: what to hold the class against (:data:`~lrp_cli.seeds.Versus`).
            seed: "logit", "one" or "probability": the relevance to start with (:mod:`lrp_cli.seeds`).

        Raises:
            UsageError: the target does not fit the model's output, or the input is no tensor.
            ConfigError: the config has no rule for a layer, or the z-box rule for one whose inputs have no known range.
            EngineError: the model is in training mode or has an operation that no rule is known for, a value is not
                finite, or the books do not balance.
        """
        with exactly():
            return self.forward(x, single=True).explain(target, versus=versus, seed=seed, keep=False)

    def forward(self, x: Tensor, *, trace: Trace | None = None, single: bool = False) -> "ForwardPass":
        """Run the model once, to explain several targets of the same samples. Arguments and errors as above.

        A ``trace`` records every operation, and the relevance that passes it. ``single`` says that one target will be
        explained, with ``keep=False``, and lets that be prepared for; it is no promise.
        """
        if not isinstance(x, Tensor):
            raise UsageError(f"the input is a torch.Tensor, not {type(x).__name__}")
        with exactly():
            propagation = Propagation(
                self.model,
                x,
                self.assignment,
                attention=self.config.ruleset.attention,
                on_unknown=self._on_unknown,
                bounds=self._bounds_like(x),
                cache=self._cache,
                products=self._products,
                trace=trace,
                plans=self._plans,
                single=single,
            )
        tolerances = (BALANCE.get(dtype, ROUGH_BALANCE) for dtype in (x.dtype, self._products or x.dtype))
        return ForwardPass(propagation, max(tolerances))

    @property
    def is_keeping(self) -> bool:
        """Whether something is kept from one explanation to the next, or may be."""
        return self._cache.limit_bytes > 0

    def stop_keeping(self) -> None:
        """Give back the memory of all that is kept, and keep less from now on: explanations take longer then."""
        self._cache = WeightCache(limit_bytes=0)
        self._plans = Plans(self.compiler)

    def _bounds_like(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        if self._bounds is None:
            return None
        if x.dim() < 2:
            raise EngineError(f"the z-box rule needs an input with channels, shape (N, C, ...), not {tuple(x.shape)}")
        kind = x.dtype, x.device, x.shape[1], x.dim()
        if kind not in self._bounds_by_kind:
            self._bounds_by_kind[kind] = self._made_bounds(self._bounds, x)
        return self._bounds_by_kind[kind]

    def _made_bounds(self, bounds: Bounds, x: Tensor) -> tuple[Tensor, Tensor]:
        try:
            low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in bounds)
        except (TypeError, ValueError) as error:
            raise UsageError(f"bounds are numbers, or one a channel, not {bounds}") from error
        if any(end.numel() not in (1, x.shape[1]) for end in (low, high)) or not bool((low < high).all()):
            raise UsageError(f"bounds are a lowest and a highest value, one each or {x.shape[1]}, not {bounds}")
        by_channel = (-1, *[1] * (x.dim() - 2))
        return low.reshape(by_channel), high.reshape(by_channel)


class ForwardPass:
    """A forward pass, ready to explain any number of targets.

    Attributes:
        logits: the model's output, shape (N, classes).
    """

    def __init__(self, propagation: Propagation, tolerance: float) -> None:
        self._propagation = propagation
        self._tolerance = tolerance
        self._is_over = False
        self.logits = propagation.logits

    def explain(
        self, target: Target = None, *, versus: Versus = None, seed: str = "logit", keep: bool = True
    ) -> Explanation:
        """Explain one score of every sample, as :meth:`Explainer.explain` does.

        ``keep=False`` says that this is the last, and frees memory on the way.

        Raises:
            UsageError: it was the last already; else as above.
        """
        if self._is_over:
            raise UsageError("keep=False gave up what this forward pass had kept; call forward() for another")
        classes, start = make_seed(self.logits, target, versus, seed)
        self._is_over = not keep
        with exactly():
            propagated = self._propagation.propagate(start, keep=keep)
        explanation = Explanation(
            relevance=propagated.relevance,
            scores=(self.logits * start).sum(dim=1),
            logits=self.logits,
            target=classes,
            books=propagated.books,
        )
        started = (self.logits * start).double().abs().sum(dim=1)
        _check_balance(explanation, started, self._propagation, self._tolerance)
        return explanation


def _check_balance(explanation: Explanation, started: Tensor, propagation: Propagation, tolerance: float) -> None:
    """Raise unless all relevance is accounted for, up to a share of how much of either sign ``started``, shape (N,)."""
    absorbed = explanation.books.by_layer().abs().sum(dim=1).to(explanation.scores.device)
    booked = started + absorbed
    if bool((explanation.imbalance.abs() > tolerance * booked).any()):
        worst = (explanation.imbalance.abs() / booked).max().item()
        origin = propagation.first_not_finite()
        if origin is not None:
            raise EngineError(f"the books do not balance, as {origin}")
        raise EngineError(
            f"the books do not balance: {worst:.1%} of the relevance is unaccounted for. Either the model computes "
            "something out of sight (an autograd.Function of its own, a scripted function), or this is a bug: please "
            "report it"
        )


def _bounds(config: NamedRuleset, bounds: Bounds | None) -> Bounds | None:
    """Return the bounds that the config gives for its z-box rule, or else those of the preprocessing."""
    boxes = [entry.rule for entry in config.ruleset.layers if isinstance(entry.rule, ZBoxSpec)]
    if not boxes:
        return None
    low = next((box.low for box in boxes if box.low is not None), None)
    high = next((box.high for box in boxes if box.high is not None), None)
    if bounds is None and (low is None or high is None):
        raise ConfigError(
            f"the z-box rule of {config.name} needs the range of the input: give bounds=(low, high), or low and high "
            "in the config"
        )
    try:
        lowest, highest = (0.0, 0.0) if bounds is None else bounds
    except (TypeError, ValueError) as error:
        raise UsageError(f"bounds are a lowest and a highest value, not {bounds!r}") from error
    return (lowest if low is None else low), (highest if high is None else high)
