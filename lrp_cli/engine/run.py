"""One forward pass and the backward passes over it: the state that the operations share."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrp_cli.engine.books import CONSTANT, Account, Books
from lrp_cli.engine.flow import Flow
from lrp_cli.engine.layers import BATCH_NORM, Assignment, Layer, Made
from lrp_cli.engine.rules import Rule
from lrp_cli.engine.tracking import ModuleTracker, Multiple, tag_of, tagged
from lrp_cli.engine.weights import WeightCache

if TYPE_CHECKING:
    from lrp_cli.engine.drafts import Draft
    from lrp_cli.engine.trace import Trace


class Run:
    """State of one forward pass and of the backward passes over it.

    Attributes:
        assignment: which rule a layer gets.
        attention: "attnlrp" or "cp-lrp".
        on_unknown: "error" or "gradient": what becomes of an operation that no rule is known for.
        cache: transformed weights, kept from run to run.
        products: the type of the products on the way back; None: the model's own.
        modules: which module is running.
        made: what the operation in hand was made of, layers and what goes together with them; None if nobody asks.
        keeps: whether further backward passes follow the one in hand.
        books: the books of the backward pass in hand.
        trace: where operations are recorded, if they are.
        draft: what writes the explanation down, if anything does.
        begin: sequence number of the input in autograd's graph; what is older does not depend on the input.
        anchor: an empty tensor at the root of every constant, so that backward passes visit the constants.
    """

    def __init__(
        self,
        modules: ModuleTracker,
        samples: int,
        assignment: Assignment,
        *,
        attention: str = "cp-lrp",
        on_unknown: str = "error",
        cache: WeightCache | None = None,
        products: torch.dtype | None = None,
        trace: "Trace | None" = None,
    ) -> None:
        self.samples = samples
        self.assignment = assignment
        self.attention = attention
        self.on_unknown = on_unknown
        self.cache = cache or WeightCache()
        self.cache.begin_forward()
        self.products = products
        self.trace = trace
        self.modules = modules
        self.made: list[Made] | None = None
        self.books = Books(samples)
        self.keeps = True
        self.draft: Draft | None = None
        self.anchor = torch.empty(0, requires_grad=True)
        self.layer_count = 0
        self.begin = 0
        self._rules: dict[Layer, Rule] = {}

    def new_layer(self, kind: str, suffix: str = "") -> Layer:
        """Return the layer that is being executed, the next one in order."""
        layer = Layer(self.modules.name + suffix, self.modules.class_name, kind, self.layer_count)
        self.layer_count += kind != BATCH_NORM
        return layer

    def note_made(self, made: "Made") -> None:
        """Note what the operation in hand was made of, if somebody asks."""
        if self.made is not None:
            self.made.append(made)

    def account(self, like: Tensor) -> Account:
        """Return the account that what is being executed books on, for tensors laid out as ``like`` is."""
        tag = tag_of(like, self)
        number = None if self.trace is None else self.trace.number
        return Account(self.modules.name, number, tag.batch_dim if tag else 0)

    def rule(self, layer: Layer) -> Rule:
        """Return the layer's rule. Only once the forward pass is over: first and last are known then."""
        if layer not in self._rules:
            self._rules[layer] = self.assignment.rule(layer, self.layer_count)
        return self._rules[layer]

    def propagate(self, rule: Rule, flow: Flow) -> Tensor:
        """Have a rule propagate relevance."""
        return rule.propagate(flow) if self.draft is None else self.draft.propagate(rule, flow)

    def carries(self, value: Any) -> bool:
        """Whether relevance can pass through a value: it is a tensor that depends on the model's input."""
        if not isinstance(value, Tensor) or value.grad_fn is None:
            return False
        return value.grad_fn._sequence_nr() >= self.begin

    def is_gate(self, tensor: Tensor) -> bool:
        """Whether the tensor weighs other activations (it came out of a sigmoid, softmax or the like)."""
        tag = tag_of(tensor, self)
        return tag is not None and tag.is_gate

    def is_non_negative(self, tensor: Tensor) -> bool:
        """Whether the tensor is known to hold no negative value, by the operations that it came out of."""
        tag = tag_of(tensor, self)
        return tag is not None and tag.non_negative == tensor._version

    def note_non_negative(self, tensor: Tensor) -> None:
        """Note that the tensor holds no negative value, until it is written into."""
        tagged(tensor, self).non_negative = tensor._version

    def keep(self, tensor: Tensor) -> Tensor:
        """Return the tensor for use on the way back, safe from operations in place."""
        self.note_kept(tensor)
        return tensor.detach()

    def keep_multiple(self, tensor: Tensor) -> tuple[Tensor, float]:
        """Return what to keep of a tensor, and how many times that is the tensor: of two copies one is enough."""
        tag = tag_of(tensor, self)
        return (self.keep(tensor), 1.0) if tag is None or tag.multiple is None else tag.multiple

    def note_multiple(self, tensor: Tensor, of: Tensor, times: float) -> None:
        """Note that a tensor is so many times another one, if that is a layer's output that is held, or a part of it.

        Or a multiple of such a part itself. Both tensors have to be noted as kept by whoever says so, lest either is
        changed in place.
        """
        tag, whole = tag_of(of, self), tag_of(of if of._base is None else of._base, self)
        if tag is not None and tag.multiple is not None:
            kept, so_many = tag.multiple
        elif whole is not None and whole.layer_call is not None and whole.layer_call.has_output:
            kept, so_many = self.keep(of), 1.0
        else:
            return
        tagged(tensor, self).multiple = Multiple(kept, so_many * times)

    def note_kept(self, tensor: Tensor) -> None:
        """Note that the tensor's values are kept for the way back: operations in place are done out of place."""
        tagged(tensor, self).kept = "any"
        if tensor._base is not None:
            tagged(tensor._base, self).kept = "any"

    def constant(self, value: Tensor | float, like: Tensor) -> Tensor:
        """Return a constant as a tensor of ``like``'s shape whose share of the relevance goes to the books."""
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)
        tensor = tensor.to(torch.promote_types(tensor.dtype, like.dtype))
        booked: Tensor = _Constant.apply(self.anchor, tensor.expand(like.shape), self, self.account(like))
        return booked


class _Constant(torch.autograd.Function):
    """A constant whose share of the relevance is booked to the module that was running."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, value: Tensor, run: Run, account: Account) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.value, ctx.run, ctx.account = value, run, account
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (g,) = gradients
        if g is not None:
            ctx.run.books.book_product(ctx.account, CONSTANT, ctx.value, g)
        return None, None, None, None
