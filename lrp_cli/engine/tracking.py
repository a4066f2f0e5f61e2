"""What the engine knows about the tensors and modules of one forward pass, without touching either."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from lrp_cli.engine.compiled import plain_name
from lrp_cli.errors import EngineError

if TYPE_CHECKING:
    from lrp_cli.engine.layers import LayerCall
    from lrp_cli.engine.run import Run

_ATTRIBUTE = "_lrp_tag"
_SOURCE = "_lrp_source"


class Uses:
    """How many operations have read a tensor. Apart from the tensor's other notes, which may refer to its graph."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def is_single(self) -> bool:
        """Whether no more than one operation has read it."""
        return self.count <= 1


class Multiple(NamedTuple):
    """What a tensor is a number of times."""

    of: Tensor
    times: float


class Tag:
    """Notes on one tensor of the forward pass.

    Attributes:
        run: the forward pass that the notes belong to.
        layer_call, layer_input: the layer whose output the tensor is, and, until the tensor is read, what the layer was
            applied to.
        uses: how many operations have read the tensor.
        is_gate: whether it came out of a sigmoid, softmax or the like and so weighs other activations.
        batch_dim: which dimension is the batch.
        bounds: its smallest and largest possible values, shape of the tensor; None once a layer has been passed.
        is_input: whether no layer lies between the model's input and the tensor.
        view_of: what it was a view of, before tracing made a tensor of its own of it; or None.
        kept: None, "output" (kept only as the output of the layer that made it) or "any" (kept for the way back).
        now: the tensor that took its place when an operation changed it, or a view of it, in place.
        producer: number of the operation that made it, while a plan is being made.
        is_inside: whether it was made inside a group of operations that are executed as one.
        non_negative: the version of the tensor's values that is known to hold no negative one, or None.
        multiple: a part of a layer's output that is held, of which it is a multiple, or None.
    """

    __slots__ = (
        "batch_dim",
        "bounds",
        "is_gate",
        "is_input",
        "is_inside",
        "kept",
        "layer_call",
        "layer_input",
        "multiple",
        "non_negative",
        "now",
        "producer",
        "run",
        "uses",
        "view_of",
    )

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.layer_call: LayerCall | None = None
        self.layer_input: Tensor | None = None
        self.uses = Uses()
        self.is_gate = False
        self.batch_dim = 0
        self.bounds: tuple[Tensor, Tensor] | None = None
        self.is_input = False
        self.kept: str | None = None
        self.now: Tensor | None = None
        self.producer: int | None = None
        self.is_inside = False
        self.non_negative: int | None = None
        self.multiple: Multiple | None = None
        self.view_of: Tensor | None = None

    def note_use(self) -> None:
        """Note that an operation has read the tensor: no later one can be made one with the layer in front of it."""
        self.uses.count += 1
        self.layer_input = None
        if self.layer_call is not None:
            self.layer_call.let_input_go()


def tag_of(tensor: Tensor, run: "Run") -> Tag | None:
    """Return the notes of this run on a tensor, or None."""
    tag: Tag | None = getattr(tensor, _ATTRIBUTE, None)
    return tag if tag is not None and tag.run is run else None


def tagged(tensor: Tensor, run: "Run") -> Tag:
    """Return the notes of this run on a tensor, begun if there are none."""
    tag = tag_of(tensor, run)
    if tag is None:
        tag = Tag(run)
        setattr(tensor, _ATTRIBUTE, tag)
    return tag


def share_tag(source: Tensor, tensor: Tensor) -> None:
    """Let a tensor go under the same notes as another one, which it stands for."""
    tag = getattr(source, _ATTRIBUTE, None)
    if tag is not None:
        setattr(tensor, _ATTRIBUTE, tag)


def detached(parameter: Tensor) -> Tensor:
    """Return a parameter's values, which remember the parameter (:func:`source_of`)."""
    values = parameter.detach()
    setattr(values, _SOURCE, parameter)
    return values


def source_of(tensor: Tensor) -> Tensor | None:
    """Return the parameter that a tensor made by :func:`detached` stands for, or None."""
    source: Tensor | None = getattr(tensor, _SOURCE, None)
    return source


def base_of(tensor: Tensor, run: "Run") -> Tensor | None:
    """Return what a tensor is a view of, or was until tracing made a tensor of its own of it; None if of nothing."""
    tag = tag_of(tensor if tensor._base is None else tensor._base, run)
    return tensor._base if tag is None or tag.view_of is None else tag.view_of


def current(tensor: Tensor, run: "Run") -> Tensor:
    """Return the tensor that took the place of one that was changed in place; others are returned as they are.

    A view of a tensor that was changed is the same view of what took that tensor's place.

    Raises:
        EngineError: what took the place is laid out in memory in another way, so that the view cannot be found in it.
    """
    while (base := base_of(tensor, run)) is None:
        tag = tag_of(tensor, run)
        if tag is None or tag.now is None:
            return tensor
        tensor = tag.now
    whole = current(base, run)
    if whole is not base and not _fills_its_memory(base):
        raise EngineError(
            f"a view of a tensor that was changed in place is read in {run.modules.name} ({run.modules.class_name}), "
            "and cannot be found in the changed one; change the model to compute that step out of place"
        )
    return tensor if whole is base else _view_like(tensor, base, whole, run)


def is_outdated(tensor: Tensor, number: int, run: "Run") -> bool:
    """Whether a node of autograd's graph, given its number, read a tensor whose place another one had taken before."""
    base = base_of(tensor, run)
    tag = tag_of(tensor if base is None else base, run)
    node = None if tag is None or tag.now is None else tag.now.grad_fn
    return node is not None and node._sequence_nr() < number


def supersede(tensor: Tensor, result: Tensor, run: "Run") -> Tensor:
    """Let ``result`` stand for ``tensor`` in every later operation: what an operation in place would have done.

    Where the tensor is a view, what it is a view of changes with it.

    Returns:
        What stands for the tensor from now on.

    Raises:
        EngineError: the tensor is a view of another kind than a part of what it is a view of.
    """
    own = tag_of(tensor, run)
    if result is tensor or (own is not None and own is tag_of(result, run)):  # dropout in eval mode does nothing
        return result
    base = base_of(tensor, run)
    if base is None:
        tagged(tensor, run).now = result
        return result
    changed = (base if run.carries(base) else run.constant(base, base)).clone()
    if result.shape != tensor.shape or tensor.dtype != base.dtype or changed.stride() != base.stride():
        raise EngineError(
            f"a view of a tensor is changed in place in {run.modules.name} ({run.modules.class_name}) in a way that "
            "cannot be followed; change the model to compute this step out of place"
        )
    _part(changed, tensor, base).copy_(result)
    note_overwritten(base, changed, result, run, lambda end, value: _part(end, tensor, base).copy_(value))
    tagged(base, run).now = changed
    new, tag = tag_of(result, run), tagged(tensor, run)
    tag.is_gate, tag.batch_dim = (new.is_gate, new.batch_dim) if new is not None else (False, 0)
    return _view_like(tensor, base, changed, run)


def note_overwritten(
    tensor: Tensor, changed: Tensor, value: Tensor, run: "Run", write: Callable[[Tensor, Tensor], Any]
) -> None:
    """Hand on the notes on a tensor to ``changed``, which is a copy of it into which ``write`` wrote ``value``."""
    old, written, tag = tag_of(tensor, run), tag_of(value, run), tagged(changed, run)
    if old is None:
        return
    tag.batch_dim = old.batch_dim
    if written is not None and old.is_input and written.is_input:
        tag.is_input = True
        if old.bounds is not None and written.bounds is not None:
            low, high = (torch.empty_like(changed).copy_(end) for end in old.bounds)
            write(low, written.bounds[0])
            write(high, written.bounds[1])
            tag.bounds = low, high


def _view_like(view: Tensor, base: Tensor, whole: Tensor, run: "Run") -> Tensor:
    """Return the part of ``whole`` that ``view`` is of ``base``, with what is known of it."""
    part = _part(whole, view, base)
    tag, old, of_whole = tagged(part, run), tag_of(view, run), tag_of(whole, run)
    if old is not None:
        tag.is_gate, tag.batch_dim = old.is_gate, old.batch_dim
    if of_whole is not None and of_whole.is_input:
        tag.is_input = True
        if of_whole.bounds is not None:
            tag.bounds = _part(of_whole.bounds[0], view, base), _part(of_whole.bounds[1], view, base)
    return part


def _part(whole: Tensor, view: Tensor, base: Tensor) -> Tensor:
    """Return the part of ``whole``, laid out in memory as ``base`` is, that ``view`` is of ``base``."""
    offset = view.storage_offset() - base.storage_offset() + whole.storage_offset()
    return whole.as_strided(view.size(), view.stride(), offset)


def _fills_its_memory(tensor: Tensor) -> bool:
    """Whether a tensor's entries lie side by side in memory, in any order: what is made of it is laid out likewise."""
    size = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length != 1 and stride != size:
            return False
        size *= length
    return True


def forget(tensor: Tensor, run: "Run") -> None:
    """Drop what is known of a tensor's values: it is about to be changed in place."""
    for changed in (tensor, tensor._base):
        tag = None if changed is None else tag_of(changed, run)
        if tag is not None:
            tag.layer_call = tag.layer_input = tag.bounds = None
            tag.is_gate = tag.is_input = False


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in an argument: a tensor, or lists, tuples and dictionaries of them."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for item in value:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple, dict)):
            _collect(item, found)


def with_tensors(value: Any, replace: Callable[[Tensor], Any]) -> Any:
    """Return the argument with ``replace`` applied to each tensor in it; other values are kept as they are."""
    if isinstance(value, Tensor):
        return replace(value)
    if isinstance(value, dict):
        return {key: with_tensors(item, replace) for key, item in value.items()} if value else value
    if not isinstance(value, (list, tuple)):
        return value
    items = [with_tensors(item, replace) if isinstance(item, _HOLDERS) else item for item in value]
    if isinstance(value, list):
        return items
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


_HOLDERS = (Tensor, list, tuple, dict)


class ModuleTracker:
    """Knows which module is running, by dotted name and class.

    Torch's global module hooks are used, and only inside :meth:`watching`: no hook is put on the model itself.

    Attributes:
        names: id of a module -> its dotted name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): plain_name(name) for name, module in model.named_modules()}
        self._running: list[nn.Module] = [model]

    @property
    def running(self) -> nn.Module:
        """The running module."""
        return self._running[-1]

    @property
    def name(self) -> str:
        """Dotted name of the running module; the model's class name for the model itself."""
        return self.names[id(self._running[-1])] or self.class_name

    @property
    def class_name(self) -> str:
        """Class name of the running module."""
        return type(self._running[-1]).__name__

    @contextmanager
    def watching(self, notice: Callable[[Any], None] = lambda value: None) -> Iterator[None]:
        """Follow the modules that this thread runs for as long as the context lasts.

        Args:
            notice: called with what a module is given before it starts, and with what it returns before it ends.
        """
        thread = get_ident()

        def enter(module: nn.Module, args: Any) -> None:
            if id(module) in self.names and get_ident() == thread:
                notice(args)
                self._running.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if id(module) in self.names and get_ident() == thread:
                try:
                    notice(output)
                finally:
                    self._running.pop()

        handles = [
            global_hooks.register_module_forward_pre_hook(enter),
            global_hooks.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
