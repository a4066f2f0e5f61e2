"""Plans: what one forward pass shows about the next, so that a layer and what follows it are executed as one.

That a convolution's output is read by a batch norm alone, and the batch norm's by a ReLU alone, is known only once a
forward pass is over; until then each needs a node of its own in autograd's graph, and notes. A later pass over the same
model and an input of the same shape makes one node of the three (:mod:`lrp_cli.engine.replay`).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lrp_cli.engine.books import Account
from lrp_cli.engine.layers import Activation, Compute, Layer, Made
from lrp_cli.engine.library import Programs
from lrp_cli.engine.linear_maps import LinearMap
from lrp_cli.engine.naming import operation_name
from lrp_cli.engine.native import Compiler
from lrp_cli.engine.operations.registry import QUESTIONS
from lrp_cli.engine.standing import kind_of
from lrp_cli.engine.weights import version_of

LIMIT = 4
"""How many plans are kept, for as many shapes of inputs."""

LAYERS = frozenset(
    ["linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm"]
)
"""Operations that a group may begin with."""

_MISSING = object()

Names = dict[int, str]
"""Id of a module -> its dotted name."""


@dataclass(frozen=True)
class Group:
    """A layer, the batch norm behind it, if any, and the activation behind both, if any, to be executed as one.

    Attributes:
        layer: the layer, as rules are assigned by it.
        account: on which account it books.
        shape: shape of its input.
        map: the layer, batch norm included, as a linear map.
        activation: the activation.
        in_place: whether the activation may overwrite the layer's output.
        is_non_negative, batch_dim: what is known of the result.
    """

    layer: Layer
    account: Account
    shape: torch.Size
    map: LinearMap
    activation: Activation | None
    in_place: bool
    is_non_negative: bool
    batch_dim: int


@dataclass(frozen=True)
class Member:
    """One call of a group.

    Attributes:
        group: the group.
        args, kwargs: the arguments; of the first one, the input, it is only known that it is a tensor.
        compute: makes the result of the input; None for the activation, which the group's node executes.
        is_first, is_last: whether the group begins with it, or ends.
        writes: whether the model takes its input for changed in place.
    """

    group: Group
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    compute: Compute | None
    is_first: bool
    is_last: bool
    writes: bool

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call has these arguments, whatever its input."""
        if len(args) != len(self.args) or len(kwargs) != len(self.kwargs):
            return False
        for given, known in zip(args[1:], self.args[1:], strict=True):
            if given is not known and not _is_equal(given, known):
                return False
        for name, known in self.kwargs.items():
            given = kwargs.get(name, _MISSING)
            if given is not known and not _is_equal(given, known):
                return False
        return True


def _is_equal(given: Any, known: Any) -> bool:
    return not isinstance(known, Tensor) and not isinstance(given, Tensor) and bool(given == known)


@dataclass
class Step:
    """One call of a torch function.

    Attributes:
        function: the torch function.
        module: the module that was running.
        is_question: whether it asks for what no values are needed for, such as a shape.
        member: its part in a group, if it has one.
    """

    function: Any
    module: nn.Module
    is_question: bool
    member: Member | None = None


def copied(value: Any) -> Any:
    """Return an argument as it is now: the model may change a list of its own later."""
    return list(value) if isinstance(value, list) else value


def new_step(function: Any, module: nn.Module) -> Step:
    """Return a step that belongs to no group."""
    name = operation_name(function)
    return Step(function, module, name in QUESTIONS or name == "get shape")


@dataclass
class Call:
    """What is noted of a call of a torch function while a plan is made.

    Attributes:
        step: what the plan says of it.
        args, kwargs: its arguments, where it is a layer or belongs to one; None in place of the first, its input.
        producers: for each tensor among the arguments the number of the call that made it, None for constants.
        made: what its handler made of it, where it is a layer or belongs to one.
        is_non_negative, batch_dim: what is known of its result.
        writes: whether it was asked to write into its input.
    """

    step: Step
    producers: tuple[int | None, ...]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    made: Made | None = None
    is_non_negative: bool = False
    batch_dim: int = 0
    writes: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that it works with, apart from its first argument."""
        return [value for value in (*self.args[1:], *self.kwargs.values()) if isinstance(value, Tensor)]

    def is_plain(self, held: set[int]) -> bool:
        """Whether it works on its first argument, with nothing else than the tensors of these ids."""
        if not self.args or not self.producers or self.producers[0] is None:
            return False
        return len(self.producers) == len(self.tensors) + 1 and all(id(tensor) in held for tensor in self.tensors)


@dataclass(frozen=True)
class Plan:
    """The calls of one forward pass in order of execution, some of them in groups.

    Attributes:
        steps: the calls.
        names: id of a module -> its dotted name.
        tensors: the parameters and buffers that the groups work with.
        state: that of the tensors, when the plan was made.
    """

    steps: list[Step]
    names: Names
    tensors: list[Tensor]
    state: list[Hashable]

    @property
    def constants(self) -> list[Tensor]:
        """The tensors of the layers, batch norms merged into them."""
        maps = {id(step.member.group): step.member.group.map for step in self.steps if step.member is not None}
        found = [tensor for map in maps.values() for tensor in (map.raw, map.bias, map.scale)]
        return [tensor for tensor in found if tensor is not None]

    @property
    def is_up_to_date(self) -> bool:
        """Whether no parameter or buffer was changed or moved."""
        return self.state == _state(self.tensors)


class Plans:
    """The plans for one model, by the shape and type of the input.

    A model that departs from its plan is run a second time, which it may notice, and is not planned for any more.

    Attributes:
        are_of_use: whether it is worth while to make plans.
        programs: what is made of a plan in the end.
    """

    def __init__(self, compiler: Compiler | None = None) -> None:
        """Begin with none; programs will be compiled if there is a compiler."""
        self.programs = Programs(compiler)
        self._plans: dict[Hashable, Plan] = {}
        self.are_of_use = True

    def find(self, names: Names, x: Tensor) -> Plan | None:
        """Return the plan for an input like x, if there is one and neither modules nor parameters were changed since.

        Args:
            names: id of a module -> its dotted name, for all modules of the model.
            x: the input.
        """
        plan = self._plans.get(kind_of(x))
        return plan if plan is not None and plan.names == names and plan.is_up_to_date else None

    def make(self, model: nn.Module, names: Names, x: Tensor, calls: list[Call]) -> None:
        """Make and keep the plan that the calls of a forward pass over x amount to, if it saves anything."""
        held = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        used: dict[int, Tensor] = {}
        for members in _groups(calls, held):
            _join(members)
            used |= {id(tensor): tensor for call in members for tensor in call.tensors}
        kind, tensors = kind_of(x), list(used.values())
        if not tensors:
            return
        if kind not in self._plans and len(self._plans) == LIMIT:
            del self._plans[next(iter(self._plans))]
        self._plans[kind] = Plan([call.step for call in calls], names, tensors, _state(tensors))

    def give_up(self) -> None:
        """Follow no plan any more, and make none."""
        self._plans.clear()
        self.are_of_use = False


def _state(tensors: Sequence[Tensor]) -> list[Hashable]:
    return [(version_of(tensor), tensor.data_ptr(), tensor.dtype) for tensor in tensors]


def _groups(calls: list[Call], held: set[int]) -> list[list[Call]]:
    """Return the calls that can be executed as one."""
    readers: dict[int, list[int]] = {}
    for number, call in enumerate(calls):
        for producer in set(call.producers):
            if producer is not None and not call.step.is_question:
                readers.setdefault(producer, []).append(number)
    groups = []
    for first, call in enumerate(calls):
        begins = call.made is not None and call.made.follows is None and call.is_plain(held)
        if begins and operation_name(call.step.function) in LAYERS:
            members = [first]
            while (after := _next(calls, members[-1], readers, held)) is not None:
                members.append(after)
            groups.append([calls[member] for member in members])
    return groups


def _next(calls: list[Call], number: int, readers: dict[int, list[int]], held: set[int]) -> int | None:
    """Return the number of the call that goes together with the numbered one and alone reads what that has made."""
    made, read_by = calls[number].made, readers.get(number, [])
    if made is None or made.activation is not None or len(read_by) != 1:
        return None
    after, follows = read_by[0], calls[read_by[0]].made
    if follows is None or follows.follows is not made.call or not calls[after].is_plain(held):
        return None
    return after if all(call.step.is_question for call in calls[number + 1 : after]) else None


def _join(calls: Sequence[Call]) -> None:
    """Make a group of calls."""
    made = [call.made for call in calls if call.made is not None]
    layer = [part for part in made if part.activation is None][-1].call
    group = Group(
        layer.layer,
        layer.account,
        layer.x.shape,
        layer.map,
        made[-1].activation,
        made[-1].in_place,
        calls[-1].is_non_negative,
        calls[-1].batch_dim,
    )
    for call, part in zip(calls, made, strict=True):
        is_first, is_last = call is calls[0], call is calls[-1]
        call.step.member = Member(group, call.args, call.kwargs, part.compute, is_first, is_last, call.writes)
