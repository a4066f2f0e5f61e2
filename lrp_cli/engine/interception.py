"""Intercepts every torch function of a forward pass and sends it to its handler.

Interception happens at the level of torch functions, not of modules: functional calls, operators, reused modules and
operations in place are all the same to it, and no model is rewritten, traced or patched.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lrp_cli.engine.checkpoints import Checkpoints, hooks_in_force
from lrp_cli.engine.naming import arguments, operation_name, with_operands_in_place, writes_in_place
from lrp_cli.engine.operations.activations import rectify_in_place
from lrp_cli.engine.operations.registry import (
    HANDLERS,
    HOMOGENEOUS,
    KEEPS_GATES,
    KEEPS_SIGNS,
    LIKE_ANOTHER,
    NON_NEGATIVE,
    QUESTIONS,
    REORDERING,
    SAVES_NOTHING,
)
from lrp_cli.engine.operations.unknown import unknown
from lrp_cli.engine.run import Run
from lrp_cli.engine.sight import Sight
from lrp_cli.engine.tracking import (
    base_of,
    current,
    detached,
    forget,
    note_overwritten,
    supersede,
    tag_of,
    tagged,
    tensors_in,
    with_tensors,
)
from lrp_cli.errors import EngineError

_OUT_OF_PLACE = {"relu": F.relu, "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}


class Interception(TorchFunctionMode):
    """While active, torch functions on tensors that depend on the model's input go through their handlers."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self._checkpoints = Checkpoints()
        self.sight = Sight(run, self._checkpoints)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute a torch function by its handler, if relevance passes through it."""
        self.sight.look()
        name = operation_name(func)
        intercept = self._property if name.startswith(("get ", "set ")) else self._intercept
        if hooks_in_force() is None:
            result = intercept(name, func, args, kwargs or {})
        else:
            with self._checkpoints.kept_out():
                result = intercept(name, func, args, kwargs or {})
        self.sight.made(result)
        return result

    def resolve(self, tensor: Tensor) -> Tensor:
        """Return what took the place of a tensor that was changed in place or made out of sight, or the tensor."""
        now = current(tensor, self.run)
        seen = self.sight.in_sight(now)
        return now if seen is now else current(seen, self.run)

    def look_up(self, tensor: Tensor) -> Tensor:
        """Resolve a tensor between two operations: the nodes that this makes are not taken for the model's."""
        self.sight.look()
        found = self.resolve(tensor)
        self.sight.made(None)
        return found

    def _intercept(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if kwargs and name in HANDLERS and name != "where":  # whose first operand is its second argument
            args, kwargs = with_operands_in_place(args, kwargs)
        if name in QUESTIONS and args and isinstance(args[0], Tensor):
            return func(self._resolve(args[0]), *args[1:], **kwargs)
        carriers: list[Tensor] = []

        def resolve(tensor: Tensor) -> Tensor:
            tensor = self._resolve(tensor)
            if self.run.carries(tensor):
                carriers.append(tensor)
            return tensor

        args, kwargs = with_tensors(args, resolve), with_tensors(kwargs, resolve)
        if not carriers:
            return func(*args, **kwargs)
        if isinstance(kwargs.get("out"), Tensor):
            raise EngineError(
                f"'{name}' in {self.run.modules.name} ({self.run.modules.class_name}) writes into out=...; change the "
                "model to use what it returns"
            )
        writes = writes_in_place(func) or kwargs.get("inplace")
        if not torch.is_grad_enabled():
            return self._without_gradient(name, func, args, kwargs, writes)
        result = self._write(name, func, args, kwargs) if writes else self._execute(name, func, args, kwargs, carriers)
        for tensor in tensors_in(result):
            if self.run.carries(tensor):  # asking for a shape is no use
                self._note_uses(carriers[:1] if name in LIKE_ANOTHER else carriers)
                break
        return result

    def _note_uses(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            tagged(tensor, self.run).note_use()

    def _resolve(self, tensor: Tensor) -> Tensor:
        """Return what an argument stands for: a parameter's values, or what took the place of a changed tensor."""
        if tensor.requires_grad and (tensor.grad_fn is None or tensor.grad_fn._sequence_nr() < self.run.begin):
            return detached(tensor)  # a parameter, or what was made of parameters before the run
        return self.resolve(tensor)

    def _property(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        run, source = self.run, self.resolve(args[0])
        result = func(source, *args[1:], **kwargs)
        if not isinstance(result, Tensor) or not run.carries(result):
            return result
        if not run.carries(source):  # the transpose of a parameter
            return result.detach()
        tag = tagged(source, run)
        tag.note_use()
        if name in REORDERING:
            tagged(result, run).batch_dim = _place_of(tag.batch_dim, source.dim(), func)
        if name in KEEPS_GATES and tag.is_gate:
            tagged(result, run).is_gate = True
        return result

    def _execute(self, name: str, func: Any, args: Any, kwargs: Any, carriers: list[Tensor]) -> Any:
        if self.run.trace is None:
            return self._handle(name, func, args, kwargs, carriers)
        for tensor in carriers:
            tagged(tensor, self.run)  # what stands for it below has the same notes
        with self.run.trace.operation(name, self.run) as operation:
            args, kwargs = operation.watch_inputs(args, kwargs)
            watched = [tensor for tensor in tensors_in((args, kwargs)) if self.run.carries(tensor)]
            result = self._handle(name, func, args, kwargs, watched)
            traced = operation.watch_outputs(result)
            for tensor in tensors_in(traced):
                if self.run.carries(tensor):
                    self._note_view(tensor, carriers)
            return traced

    def _note_view(self, tensor: Tensor, carriers: list[Tensor]) -> None:
        """Note which of the tensors that it was made of a tensor was a view of, before tracing made one of its own."""
        tag = tagged(tensor, self.run)
        for source in carriers:
            if source.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
                base = base_of(source, self.run)
                is_another = tag is not tag_of(source, self.run)
                tag.view_of = source if base is None and is_another else base

    def _without_gradient(self, name: str, func: Any, args: Any, kwargs: Any, writes: bool) -> Any:
        """Execute an operation that autograd is told to overlook: no relevance passes through its result."""
        if writes and args and self.run.carries(args[0]):
            raise EngineError(
                f"'{name}' in {self.run.modules.name} ({self.run.modules.class_name}) changes a tensor in place behind "
                "autograd's back (under torch.no_grad(), or in an autograd.Function); change the model to compute this "
                "step out of place"
            )
        return self._write(name, func, args, kwargs) if writes else func(*args, **kwargs)

    def _handle(self, name: str, func: Any, args: Any, kwargs: Any, carriers: list[Tensor]) -> Any:
        run = self.run
        if name in HANDLERS:
            result = HANDLERS[name](run, func, args, kwargs)
        elif name in HOMOGENEOUS:
            result = func(*args, **kwargs)
        else:
            result = unknown(run, func, args, kwargs)
        if len(carriers) == 1 or name in LIKE_ANOTHER:
            self._hand_on_notes(name, func, args, kwargs, carriers[0], result)
        elif name in {"cat", "stack"}:
            self._hand_on_bounds(func, args, kwargs, carriers[0], result)
        self._hand_on_layout(name, func, args, kwargs, carriers, result)
        self._hand_on_sign(name, args, kwargs, carriers, result)
        if name not in SAVES_NOTHING:
            for tensor in (*carriers, *tensors_in(result)):
                if run.carries(tensor):
                    run.note_kept(tensor)
        return result

    def _hand_on_sign(self, name: str, args: Any, kwargs: Any, carriers: list[Tensor], result: Any) -> None:
        """Note that a result has no negative value, where that follows from the operation."""
        run = self.run
        if name == "hardtanh":
            known = arguments(("input", "min_val"), args, kwargs).get("min_val", -1) >= 0
        elif name in {"cat", "stack"}:
            known = all(run.is_non_negative(tensor) for tensor in tensors_in((args, kwargs)))
        elif name in {"add", "mul"}:
            known = not kwargs and all(isinstance(term, Tensor) and run.is_non_negative(term) for term in args)
        else:
            known = name in NON_NEGATIVE or (name in KEEPS_SIGNS and run.is_non_negative(carriers[0]))
        if known:
            for tensor in tensors_in(result):
                run.note_non_negative(tensor)

    def _hand_on_layout(
        self, name: str, func: Any, args: Any, kwargs: Any, carriers: list[Tensor], result: Any
    ) -> None:
        """Note which dimension of a result is the batch, where it is not the first."""
        run = self.run
        tags = [(tensor, tag) for tensor in carriers if (tag := tag_of(tensor, run)) is not None and tag.batch_dim]
        if not tags and name not in REORDERING:
            return
        source, at = (tags[0][0], tags[0][1].batch_dim) if tags else (carriers[0], 0)
        if name in REORDERING:
            tagged(result, run).batch_dim = _place_of(at, source.dim(), lambda sizes: func(sizes, *args[1:], **kwargs))
        elif at:
            for tensor in tensors_in(result):
                kept = tensor.dim() == source.dim() and tensor.shape[at] == run.samples
                if run.carries(tensor) and kept:
                    tagged(tensor, run).batch_dim = at

    def _hand_on_notes(self, name: str, func: Any, args: Any, kwargs: Any, source: Tensor, result: Any) -> None:
        run, tag = self.run, tag_of(source, self.run)
        if tag is None:
            return
        if tag.is_gate and name in KEEPS_GATES:
            for tensor in tensors_in(result):
                tagged(tensor, run).is_gate = True
        if tag.is_input:
            self._hand_on_bounds(func, args, kwargs, source, result)

    def _hand_on_bounds(self, func: Any, args: Any, kwargs: Any, source: Tensor, result: Any) -> None:
        """Send the bounds of the model's input through what is done to it before the first layer."""
        run, first = self.run, tag_of(source, self.run)
        if first is None or not first.is_input:
            return
        tags = {id(t): tag_of(t, run) for t in tensors_in((args, kwargs)) if run.carries(t)}
        if not isinstance(result, Tensor) or not all(tag and tag.is_input for tag in tags.values()):
            return
        tag = tagged(result, run)
        if tag.layer_call is not None:
            return
        tag.is_input = True
        if all(t.bounds for t in tags.values() if t):
            low, high = (self._on_bounds(func, args, kwargs, tags, end) for end in (0, 1))
            tag.bounds = torch.minimum(low, high), torch.maximum(low, high)

    @staticmethod
    def _on_bounds(func: Any, args: Any, kwargs: Any, tags: dict[int, Any], end: int) -> Tensor:
        args, kwargs = with_tensors((args, kwargs), lambda t: tags[id(t)].bounds[end] if id(t) in tags else t)
        result: Tensor = func(*args, **kwargs)
        return result

    def _write(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute an operation that writes into its first argument.

        What is kept for the way back must not change: then the result is made out of place and takes the place of the
        tensor in every later operation. Only where nothing is kept is it done as written.
        """
        run, target = self.run, args[0] if args else kwargs["input"]
        if "dropout" in name and not kwargs.get("training", True):  # it returns what it is given
            return self._execute(name, func, args, kwargs | {"inplace": False}, [target])
        kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
        tag = tag_of(target, run)
        kept = tag.kept if tag else None
        if target._base is not None:
            base = tag_of(target._base, run)
            kept = kept or (base.kept if base else None)
        if name in {"setitem", "copy", "fill", "zero"}:
            return self._overwrite(name, func, args, kwargs, kept is not None)
        # After a ReLU, what was negative carries no relevance: a layer's kept output may lose it.
        is_unread = tag is not None and tag.uses.count == 0 and target._base is None
        safe = kept is None or (kept == "output" and name == "relu" and is_unread)
        if safe and name in HOMOGENEOUS and run.carries(target) and run.trace is None:
            return self._write_in_place(name, func, args, kwargs, target)
        function = _OUT_OF_PLACE.get(name) or _out_of_place(func)
        carriers = [tensor for tensor in tensors_in((args, kwargs)) if run.carries(tensor)]
        result = self._execute(name, function, args, kwargs, carriers)
        return supersede(target, result, run)

    def _write_in_place(self, name: str, func: Any, args: Any, kwargs: Any, target: Tensor) -> Any:
        """Execute what changes nothing that is kept, apart from a layer's output that loses what no rule reads."""
        result = rectify_in_place(self.run, target) if name == "relu" and target._base is None else None
        forget(target, self.run)
        if result is not None:
            tagged(result, self.run).batch_dim = tagged(target, self.run).batch_dim
            supersede(target, result, self.run)
        else:
            result = torch.relu_(target) if name == "relu" else func(*args, **kwargs)
            if name not in SAVES_NOTHING:
                self.run.note_kept(result)
        if name == "relu":
            self.run.note_non_negative(result)
        return result

    def _overwrite(self, name: str, func: Any, args: Any, kwargs: Any, kept: bool) -> Any:
        """Execute ``target[index] = value`` and the like."""
        run, (target, *rest) = self.run, args
        if name == "setitem" and not run.carries(rest[1]):
            func, rest = Tensor.copy_, [self._with_constant(target, *rest)]
        elif name in {"copy", "fill"}:
            func, rest = Tensor.copy_, [self._booked(rest[0], target)]
        if target._base is not None and not kept and run.trace is None:
            forget(target, run)
            return func(target, *rest, **kwargs)
        copy = (target if run.carries(target) else run.constant(target, target)).clone()
        func(copy, *rest, **kwargs)
        value = rest[-1] if rest and isinstance(rest[-1], Tensor) else copy
        note_overwritten(target, copy, value, run, lambda end, written: func(end, *rest[:-1], written))
        return supersede(target, copy, run)

    def _with_constant(self, target: Tensor, index: Any, value: Any) -> Tensor:
        """Return ``target`` with a constant, which is booked, in the places of an index of any kind."""
        places = torch.zeros_like(target, dtype=torch.bool)
        places[index] = True
        values = torch.zeros_like(target)
        values[index] = value
        constant = self.run.constant(values, values) if bool(values.any()) else values
        return torch.where(places, constant, target)

    def _booked(self, value: Any, like: Tensor) -> Any:
        """Return what is written in place of ``like``: constants are booked."""
        if self.run.carries(value) or (not isinstance(value, Tensor) and value == 0):
            return torch.zeros_like(like) if not isinstance(value, Tensor) else value
        return self.run.constant(value, like)


def _out_of_place(func: Any) -> Any:
    def function(target: Tensor, *args: Any, **kwargs: Any) -> Any:
        return func(target.clone(), *args, **kwargs)

    function.__name__ = func.__name__
    return function if writes_in_place(func) else func


def _place_of(dimension: int, dimensions: int, reorder: Callable[[Tensor], Tensor]) -> int:
    """Return where a dimension goes, by doing the same to a tensor whose sizes tell its dimensions apart."""
    sizes = torch.empty([size + 2 for size in range(dimensions)], device="meta")
    return list(reorder(sizes).shape).index(dimension + 2)
