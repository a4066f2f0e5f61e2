"""Layer-wise Relevance Propagation: one forward pass, then one backward pass for every target."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lrp_cli.engine.books import Books
from lrp_cli.engine.checkpoints import guarded
from lrp_cli.engine.compiled import as_written, uncompiled
from lrp_cli.engine.drafts import Draft
from lrp_cli.engine.finiteness import Origin, first_origin, origin_of_output
from lrp_cli.engine.interception import Interception
from lrp_cli.engine.layers import Assignment
from lrp_cli.engine.operations.constants import nudged
from lrp_cli.engine.plans import Plans
from lrp_cli.engine.programs import ProgramRun
from lrp_cli.engine.replay import Recording, Replay
from lrp_cli.engine.run import Run
from lrp_cli.engine.trace import Trace
from lrp_cli.engine.tracking import ModuleTracker, tagged
from lrp_cli.engine.weights import WeightCache
from lrp_cli.errors import EngineError, is_out_of_memory

Bounds = tuple[Tensor, Tensor] | None
"""Smallest and largest values of the input, broadcastable to it."""


@dataclass(frozen=True)
class Propagated:
    """Relevance of one target for a batch.

    Attributes:
        relevance: relevance of the input, shape of the input.
        books: what every layer absorbed.
    """

    relevance: Tensor
    books: Books


class Propagation:
    """A forward pass whose output can be explained, for any number of targets.

    Attributes:
        logits: the model's output, shape (N, classes), detached.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        assignment: Assignment,
        *,
        attention: str = "cp-lrp",
        on_unknown: str = "error",
        bounds: Bounds = None,
        cache: WeightCache | None = None,
        products: torch.dtype | None = None,
        trace: Trace | None = None,
        plans: Plans | None = None,
        single: bool = False,
    ) -> None:
        """Run the model on ``x``.

        Args:
            model: a module in eval mode; it is left as it is.
            x: floating-point input, the batch first: shape (N, ...).
            assignment: which rule a layer gets.
            attention: "cp-lrp" or "attnlrp": how softmax attention hands on relevance.
            on_unknown: "error" or "gradient": what becomes of relevance at an operation without a rule.
            bounds: smallest and largest values of the input, broadcastable to x; the z-box rule needs them.
            cache: transformed weights kept from an earlier pass over the same model.
            products: the type of the products on the way back; None: the model's own.
            trace: where every operation is recorded, with the relevance that passes it.
            plans: what earlier passes over the same model, with the same of everything above, have shown.
            single: whether one target is explained, and none after it: by ``propagate(seed, keep=False)``.

        Raises:
            EngineError: the model is in training mode or scripted, hides what it computes in a checkpoint, or does not
                return a tensor (N, classes) that depends on x.
        """
        check_kind(model)
        _check_input(model, x)
        self._begin = partial(
            Run,
            samples=x.shape[0],
            assignment=assignment,
            attention=attention,
            on_unknown=on_unknown,
            cache=cache,
            products=products,
            trace=trace,
        )
        self._model = as_written(model)
        self._x = nudged(x.detach()).requires_grad_()
        self._plans = None if trace is not None else plans
        self._bounds, self._trace, self._single = bounds, trace, single
        self._circumstances = model, assignment, attention, on_unknown, products
        self._program_run: ProgramRun | None = None
        self._draft: Draft | None = None
        if self._plans is not None:
            self._program_run = self._plans.programs.run(self._x.detach(), self._circumstances, single=single)
        if self._program_run is None:
            self._execute()
        else:
            self.logits = self._program_run.logits
        _check_forward(model, x, self.logits)

    def _execute(self) -> None:
        """Run the model so that relevance can be handed down by autograd."""
        _check_modules(self._model)
        if self._plans is None or not self._follow(self._plans):
            self._explore()
        self.logits = self._logits.detach()

    def _follow(self, plans: Plans) -> bool:
        """Run the model by the plan for inputs like this one; return whether there was one, and the model followed."""
        modules = ModuleTracker(self._model)
        plan = plans.find(modules.names, self._x)
        if plan is None:
            return False
        replay, random_state = Replay(self._begin(modules), plan), torch.get_rng_state()
        draft = plans.programs.draft(
            self._model,
            self._circumstances,
            lambda: [*plan.constants, *replay.run.cache.tensors(), *(self._bounds or ())],
            self._x.detach(),
            single=self._single,
        )
        replay.run.draft = draft
        try:
            with torch.enable_grad(), modules.watching(), guarded(), uncompiled(), _written(draft):
                output = self._output(replay)
                replay.finish(output)
                self._logits = _check_output(output, replay)
            if draft is not None:
                draft.end_forward(self._logits)
        except Exception:
            plans.give_up()
            torch.set_rng_state(random_state)
            return False
        self._run, self._sight, self._draft = replay.run, replay.sight, draft
        self._sight.close()
        return True

    def _explore(self) -> None:
        """Run the model, and make a plan for the next pass over an input like this one."""
        plans, modules = self._plans, ModuleTracker(self._model)
        self._run = self._begin(modules)
        interception = Interception(self._run) if plans is None or not plans.are_of_use else Recording(self._run)
        self._sight = interception.sight
        with torch.enable_grad(), modules.watching(self._sight.notice), guarded(), uncompiled():
            self._logits = _check_output(self._output(interception), interception)
        if plans is not None and isinstance(interception, Recording) and interception.is_plannable:
            plans.make(self._model, modules.names, self._x, interception.calls)
        self._sight.close()

    def _output(self, interception: Interception) -> Any:
        """Run the model; return what it returns."""
        x, run, bounds = self._x, interception.run, self._bounds
        entering = x.clone()
        run.begin = entering.grad_fn._sequence_nr() if entering.grad_fn else 0
        tag = tagged(entering, run)
        tag.is_input, tag.producer = True, -1
        if bounds is not None:
            tag.bounds = bounds[0].to(x).expand(x.shape), bounds[1].to(x).expand(x.shape)
        interception.sight.made(entering)
        with interception:
            return self._model(entering)

    def propagate(self, seed: Tensor, *, keep: bool = True) -> Propagated:
        """Hand relevance down from the output to the input.

        Args:
            seed: the modified gradient of the output, shape (N, classes): the relevance of the output is
                ``logits * seed``; one-hot rows explain one class's logit.
            keep: whether further targets follow; False frees memory on the way.

        Raises:
            EngineError: relevance arrives at an operation without a rule, or a value is not finite.
        """
        gradient, books = self._by_program(seed, keep) or self._by_autograd(seed.to(self._logits), keep)
        relevance = self._x.detach() * gradient
        self._check_finite(relevance, books)
        if self._trace is not None:
            self._trace.settle(books)
        return Propagated(relevance, books)

    def _by_program(self, seed: Tensor, keep: bool) -> tuple[Tensor, Books] | None:
        """Return the gradient and the books; None where there is no program, or it does not fit."""
        if self._program_run is None:
            return None
        found = self._program_run.hand_down(seed.to(self.logits), keep=keep)
        if found is None:
            if not self._program_run.still_stands:
                raise EngineError("the model was changed after the forward pass that is to be explained")
            self._program_run = None
            self._execute()
        return found

    def _by_autograd(self, seed: Tensor, keep: bool) -> tuple[Tensor, Books]:
        """Return the gradient and the books, by autograd."""
        run, draft = self._run, self._draft
        if draft is not None and not draft.is_new(keep=keep):
            draft = None
        run.books, run.keeps = Books(run.samples), keep
        run.cache.begin_target()
        if self._trace is not None:
            self._trace.clear()
        run.draft = draft
        if draft is not None:
            seed = draft.begin_backward(seed)
        with _written(draft):
            gradient = self._gradient(seed, keep)
        if gradient is None:
            raise EngineError("no relevance reaches the input: the output does not depend on it by any path")
        if draft is not None and self._plans is not None:
            draft.end_backward(gradient, run.books, keep=keep)
            self._plans.programs.keep(draft)
        return gradient, run.books

    def _check_finite(self, relevance: Tensor, books: Books) -> None:
        if all(bool(tensor.isfinite().all()) for tensor in (relevance, books.by_layer())):
            return
        absorbed = books.absorbed()
        places = [f"layer {layer}" for layer, sums in absorbed.items() if not sums.isfinite().all()]
        cause = self.first_not_finite() or "try a rule with a larger stabiliser there"
        raise EngineError(f"relevance is not finite at {(places or ['the input'])[0]}; {cause}")

    def first_not_finite(self) -> Origin | None:
        """Return the first operation whose result is not finite, and not meant to be; the model is run again."""
        return first_origin(self._model, self._x)

    def _gradient(self, seed: Tensor, keep: bool) -> Tensor | None:
        regions = self._sight.regions
        for region in regions:
            region.clear()
        try:
            with torch.enable_grad():
                start = (self._logits * seed).sum()
            gradient, _ = torch.autograd.grad(start, [self._x, self._run.anchor], retain_graph=keep, allow_unused=True)
        except RuntimeError as error:
            if not regions or is_out_of_memory(error):
                raise
            names = " and ".join(f"{region.description} in {region.layer}" for region in regions)
            raise EngineError(f"the gradient of {names} cannot be taken: {error}") from error
        for region in regions:
            region.settle()
        return gradient


def _written(draft: Draft | None) -> AbstractContextManager[Any]:
    return nullcontext() if draft is None else draft.transcript


def check_kind(model: Any) -> None:
    """Raise EngineError unless the model is a torch.nn.Module."""
    if not isinstance(model, nn.Module):
        raise EngineError(f"a torch.nn.Module is needed, not {type(model).__name__}")


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise EngineError(
                f"{name or 'the model'} is a scripted or traced module ({module.original_name}), and what it computes "
                "is out of sight; pass the original module"
            )
        if module.training:
            raise EngineError(
                f"the model is in training mode ({name or type(module).__name__}); call model.eval() first"
            )


def _check_input(model: nn.Module, x: Tensor) -> None:
    if not x.is_floating_point():
        raise EngineError(f"the input must be of a floating-point type, not {x.dtype}")
    if x.dim() == 0 or x.numel() == 0:
        raise EngineError(f"the input is empty: shape {tuple(x.shape)}")
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    if own != x.dtype:
        raise EngineError(f"the input is {x.dtype} and the model {own}; convert one of them")
    if torch.is_autocast_enabled(x.device.type):
        raise EngineError("torch.autocast changes the model's arithmetic on the way; explain outside of it")
    if torch.is_inference_mode_enabled():
        raise EngineError("relevance needs autograd, which torch.inference_mode() turns off; explain outside of it")


def _check_forward(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    if bool(logits.isfinite().all()):
        return
    if not bool(x.isfinite().all()):
        raise EngineError("the input is not finite: it holds nan or inf")
    broken = [name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())]
    broken += [name for name, buffer in model.named_buffers() if bool(buffer.isnan().any())]  # inf may be a mask
    if broken:
        raise EngineError(f"the model's parameters are not finite: {broken[0]} holds nan or inf")
    origin = origin_of_output(model, x)
    raise EngineError(str(origin) if origin else "the model's output is not finite: its activations overflow")


def _check_output(returned: Any, interception: Interception) -> Tensor:
    run = interception.run
    output = interception.look_up(returned) if isinstance(returned, Tensor) else returned
    if not isinstance(output, Tensor):
        raise EngineError(
            f"the model returns {type(output).__name__}, not a tensor (N, classes); wrap it in a module that picks one"
        )
    if output.dim() != 2 or output.shape[0] != run.samples:
        raise EngineError(f"the model returns shape {tuple(output.shape)}; (N, classes) is needed")
    if not run.carries(output):
        raise EngineError("the model's output does not depend on its input, or was detached from it")
    return output
