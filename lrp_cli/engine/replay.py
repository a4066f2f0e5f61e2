"""Forward passes that make a plan, and forward passes that follow one (:mod:`lrp_cli.engine.plans`).

A plan is checked at every call: that it is the same torch function with the same parameters, and that what is computed
inside a group is read by the group alone. Where the model does anything else than it did when the plan was made, the
forward pass departs from the plan and has to be begun again without.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from lrp_cli.engine.checkpoints import hooks_in_force
from lrp_cli.engine.interception import Interception
from lrp_cli.engine.layers import BATCH_NORM, ActivatedNode, Layer, LayerCall, LayerNode, Made, no_view
from lrp_cli.engine.naming import operation_name, writes_in_place
from lrp_cli.engine.operations.linear import note_layer
from lrp_cli.engine.plans import Call, Group, Member, Plan, copied, new_step
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import Tag, supersede, tag_of, tagged, tensors_in

LOOKS = frozenset(["array", "data_ptr", "deepcopy", "dlpack", "format", "map", "apply", "numpy", "reduce_ex", "repr"])
LOOKS |= frozenset(["storage", "tolist", "typed_storage", "untyped_storage"])
"""Functions that read a tensor's values out of the dispatcher's sight."""


class Departed(Exception):  # noqa: N818 (it is no error: the pass is begun again)
    """The model does something else than planned. The model itself may catch it, or raise another error from it."""


class Recording(Interception):
    """Notes every call of a forward pass.

    Attributes:
        calls: the calls, in order of execution.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.calls: list[Call] = []
        self._is_plain = True

    @property
    def is_plannable(self) -> bool:
        """Whether everything was in sight, and done under no conditions that the next pass may not be done under."""
        return self._is_plain and not self.sight.look()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute a torch function by its handler, and note it."""
        kwargs = kwargs or {}
        modules = self.run.modules
        step = new_step(func, modules.running)
        call = Call(step, tuple(self._producer(tensor) for tensor in tensors_in((args, kwargs))))
        self._is_plain = self._is_plain and torch.is_grad_enabled() and hooks_in_force() is None
        # Without the first argument, the input, which may not be held any longer than the model holds it.
        noted = (None, *(copied(value) for value in args[1:])), {name: copied(value) for name, value in kwargs.items()}
        made = self.run.made = []
        try:
            result = super().__torch_function__(func, types, args, kwargs)
        finally:
            self.run.made = None
        if len(made) == 1 and self._is_of(made[0], args):
            call.made, (call.args, call.kwargs) = made[0], noted
            call.writes = bool(writes_in_place(func) or kwargs.get("inplace"))
        for tensor in tensors_in(result):
            if self.run.carries(tensor):
                tag = tagged(tensor, self.run)
                tag.producer, call.batch_dim = len(self.calls), tag.batch_dim
                call.is_non_negative = self.run.is_non_negative(tensor)
        self.calls.append(call)
        return result

    def _is_of(self, made: Made, args: tuple[Any, ...]) -> bool:
        """Whether it is the first argument that was used, as it would be in a group."""
        x = args[0] if args else None
        if not isinstance(x, Tensor):
            return False
        if made.follows is not None:
            return True
        x = self.look_up(x)
        return made.call.is_of(x) and not _is_fed(made.call.layer, tag_of(x, self.run))

    def _producer(self, tensor: Tensor) -> int | None:
        tag = tag_of(self.look_up(tensor), self.run)
        return None if tag is None else tag.producer


class Replay(Interception):
    """Follows a plan.

    Attributes:
        has_departed: whether the model did something else than planned.
    """

    def __init__(self, run: Run, plan: Plan) -> None:
        super().__init__(run)
        self._plan, self._steps = plan, iter(plan.steps)
        self.has_departed = False
        self._x: Tensor
        self._inside: Tensor | None = None
        self._asks = False

    def finish(self, output: Any) -> None:
        """Raise :class:`Departed` unless the model did all that was planned and nothing else, and returns no inside."""
        is_inside = isinstance(output, Tensor) and self._is_inside(output)
        is_over = next(self._steps, None) is None and not self.sight.look()
        if is_inside or self.has_departed or not is_over or not self._plan.is_up_to_date:
            self._depart()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute a torch function as planned."""
        step, kwargs = next(self._steps, None), kwargs or {}
        if step is None or step.function != func or step.module is not self.run.modules.running or self.sight.look():
            self._depart()
        if self.run.draft is not None and operation_name(func) in LOOKS:
            self.run.draft.transcript.refuse(f"{operation_name(func)} looks at values")
        if step.member is not None:
            result = self._execute_member(step.member, args, kwargs)
            self.sight.made(result)
            return result
        if step.is_question and args and args[0] is self._inside:
            return func(*args, **kwargs)
        self._asks = step.is_question
        return super().__torch_function__(func, types, args, kwargs)

    def _depart(self) -> NoReturn:
        self.has_departed = True
        raise Departed

    def _resolve(self, tensor: Tensor) -> Tensor:
        tag = tag_of(tensor, self.run)
        if not self._asks and self._is_inside(tensor):
            self._depart()
        # Inside tensors are leaves that ask for gradients, as parameters are.
        return self.resolve(tensor) if tag is not None and tag.is_inside else super()._resolve(tensor)

    def _property(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if not self._asks and self._is_inside(args[0]):
            self._depart()
        return super()._property(name, func, args, kwargs)

    def _is_inside(self, tensor: Tensor) -> bool:
        tag = tag_of(tensor if tensor._base is None else tensor._base, self.run)
        return tag is not None and tag.is_inside and tag.now is None

    def _execute_member(self, member: Member, args: Any, kwargs: Any) -> Tensor:
        if not member.takes(args, kwargs) or not torch.is_grad_enabled() or hooks_in_force() is not None:
            self._depart()
        if member.is_first:
            self._x = self.resolve(args[0])
            if not self._may_begin(member.group, self._x):
                self._depart()
            z = self._x.detach()
        else:
            if self._inside is None or args[0] is not self._inside:
                self._depart()
            z = self._inside.detach()
        if member.compute is not None:
            z = no_view(member.compute(z))
        if not member.is_last:
            self._inside = z.requires_grad_()  # else what is done with it out of sight would go unnoticed
            tagged(z, self.run).is_inside = True
            return z
        self._inside = None
        y = self._execute_group(member.group, z)
        return supersede(args[0], y, self.run) if member.writes else y

    def _may_begin(self, group: Group, x: Tensor) -> bool:
        """Whether a tensor may be the input of a group: it is like the one that the plan was made with."""
        run = self.run
        if x.shape != group.shape or not run.carries(x) or run.layer_count != group.layer.index:
            return False
        tag = tagged(x, run)
        return tag.batch_dim == group.account.batch_dim and not _is_fed(group.layer, tag)

    def _execute_group(self, group: Group, z: Tensor) -> Tensor:
        """Return the group's result, given the output of its layer."""
        run, x = self.run, self._x
        run.layer_count += group.layer.kind != BATCH_NORM
        tag = tagged(x, run)
        call = LayerCall(run, group.layer, lambda: group.map, x, tag.bounds, group.account)
        tag.note_use()
        if group.activation is None:
            y: Tensor = LayerNode.apply(x, call, lambda _: z)
            note_layer(run, y, call, x)
        else:
            call.keep_output(z)
            call.let_input_go()
            y = ActivatedNode.apply(x, z, call, group.activation, _always, group.in_place)
            tagged(y, run).kept = "any"
        if group.is_non_negative:
            run.note_non_negative(y)
        if group.batch_dim:
            tagged(y, run).batch_dim = group.batch_dim
        return y


def _is_fed(layer: Layer, tag: Tag | None) -> bool:
    """Whether a layer is a batch norm whose input, of these notes, comes out of a layer in front of it."""
    return layer.kind == BATCH_NORM and tag is not None and tag.layer_call is not None


def _always() -> bool:
    return True
