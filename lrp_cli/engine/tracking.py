"""What the engine knows about the tensors and modules of one forward pass, without touching either."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from lrp_cli.errors import EngineError

if TYPE_CHECKING:
    from lrp_cli.engine.layers import LayerCall
    from lrp_cli.engine.run import Run

_ATTRIBUTE = "_lrp_tag"
_SOURCE = "_lrp_source"


class Tag:
    """Notes on one tensor of the forward pass.

    Attributes:
        run: the forward pass that the notes belong to.
        layer_call, layer_input: the layer whose output the tensor is, and the tensor that it was applied to.
        uses: how many operations have read the tensor.
        is_gate: whether it came out of a sigmoid, softmax or the like and so weighs other activations.
        batch_dim: which dimension is the batch.
        bounds: its smallest and largest possible values, shape of the tensor; None once a layer has been passed.
        is_input: whether no layer lies between the model's input and the tensor.
        kept: None, "output" (kept only as the output of the layer that made it) or "any" (kept for the way back).
        now: the tensor that took its place when an operation changed it in place.
        is_stale: whether it was changed in place through a view of it, which only that view knows.
        non_negative: the version of the tensor's values that is known to hold no negative one, or None.
    """

    __slots__ = (
        "batch_dim",
        "bounds",
        "is_gate",
        "is_input",
        "is_stale",
        "kept",
        "layer_call",
        "layer_input",
        "non_negative",
        "now",
        "run",
        "uses",
    )

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.layer_call: LayerCall | None = None
        self.layer_input: Tensor | None = None
        self.uses = 0
        self.is_gate = False
        self.batch_dim = 0
        self.bounds: tuple[Tensor, Tensor] | None = None
        self.is_input = False
        self.kept: str | None = None
        self.now: Tensor | None = None
        self.is_stale = False
        self.non_negative: int | None = None


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


def current(tensor: Tensor, run: "Run") -> Tensor:
    """Return the tensor that took the place of one that was changed in place; others are returned as they are.

    Raises:
        EngineError: the tensor is a view of one that was changed in place, and so no longer holds what it should.
    """
    tag = tag_of(tensor, run)
    if tag is None or tag.now is None:
        base = tag if tensor._base is None else tag_of(tensor._base, run)
        if base is not None and (base.is_stale or base.now is not None):
            raise EngineError(
                f"a tensor is read in {run.modules.name} ({run.modules.class_name}) after it was changed in place "
                "through another view of it; change the model to compute this step out of place"
            )
    while tag is not None and tag.now is not None:
        tensor = tag.now
        tag = tag_of(tensor, run)
    return tensor


def supersede(tensor: Tensor, result: Tensor, run: "Run") -> None:
    """Let ``result`` stand for ``tensor`` in every later operation: what an operation in place would have done."""
    if result is tensor:  # dropout in eval mode returns what it was given
        return
    tagged(tensor, run).now = result
    if tensor._base is not None:
        tagged(tensor._base, run).is_stale = True


def forget(tensor: Tensor, run: "Run") -> None:
    """Drop what is known of a tensor's values: it is about to be changed in place."""
    for changed in (tensor, tensor._base):
        tag = None if changed is None else tag_of(changed, run)
        if tag is not None:
            tag.layer_call = tag.layer_input = tag.bounds = None
            tag.is_gate = tag.is_input = False


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an argument: a tensor, or lists, tuples and dictionaries of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def with_tensors(value: Any, replace: Callable[[Tensor], Any]) -> Any:
    """Return the argument with ``replace`` applied to each tensor in it; other values are kept as they are."""
    if isinstance(value, Tensor):
        return replace(value)
    if isinstance(value, (list, tuple)):
        items = [with_tensors(item, replace) for item in value]
        if isinstance(value, tuple):
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return items
    if isinstance(value, dict):
        return {key: with_tensors(item, replace) for key, item in value.items()}
    return value


class ModuleTracker:
    """Knows which module is running, by dotted name and class.

    Torch's global module hooks are used, and only inside :meth:`watching`: no hook is put on the model itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._running: list[nn.Module] = [model]

    @property
    def name(self) -> str:
        """Dotted name of the running module; the model's class name for the model itself."""
        return self._names[id(self._running[-1])] or self.class_name

    @property
    def class_name(self) -> str:
        """Class name of the running module."""
        return type(self._running[-1]).__name__

    def _enter(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._names:
            self._running.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in self._names:
            self._running.pop()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the modules for as long as the context lasts."""
        handles = [
            global_hooks.register_module_forward_pre_hook(self._enter),
            global_hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
