"""Programs do the same as the operations they were written down from, over memory that nobody needs, and only there."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lrp_cli.engine.lowering import compiled
from lrp_cli.engine.shortcuts import ENTRY_BY_ENTRY, FUNCTIONS, shortened
from lrp_cli.engine.transcript import Step, Transcript, Value
from tests.engine.test_lifetimes import peak

aten = torch.ops.aten
A, B = torch.linspace(-2, 2, 24).view(4, 6), torch.linspace(1, 3, 24).view(4, 6).flip(0)
IMAGE, KERNEL, CHANNELS = (
    torch.linspace(-1, 1, 50).view(1, 2, 5, 5),
    torch.linspace(-1, 2, 36).view(2, 2, 3, 3),
    A[0, :2],
)
LISTS = [1, 1], [0, 0], [1, 1], False, [0, 0], 1

ARGUMENTS = {
    aten._softmax.default: (A, 1, False),
    aten._softmax_backward_data.default: (A, B, 1, torch.float32),
    aten._unsafe_view.default: (A, [3, -1]),
    aten.addcdiv.out: (A, A, B),
    aten.addmm.default: (A[0, :4], A, B.t().contiguous()),
    aten.as_strided.default: (A, [2, 3], [3, 1], 2),
    aten.baddbmm.default: (A[None, :, :4], A[None], B.t()[None]),
    aten.bmm.default: (A[None], B.t()[None]),
    aten.cat.default: ([A, B], 1),
    aten.clamp.default: (A, None, 1),
    aten.clamp_.default: (A, 0),
    aten.constant_pad_nd.default: (A, [1, 2], 0.5),
    aten.convolution.default: (IMAGE, KERNEL, CHANNELS, *LISTS),
    aten.dot.default: (A[0], B[0]),
    aten.expand.default: (A[None], [3, 4, 6]),
    aten.fill_.Tensor: (A, B[0, 0]),
    aten.lerp.Scalar_out: (A, B, 0.3),
    aten.log_.default: (B,),
    aten.masked_fill.Scalar: (A, A > 0, -1.0),
    aten.mean.dim: (IMAGE, [2, 3], True),
    aten.mm.default: (A, B.t()),
    aten.native_batch_norm.default: (IMAGE, CHANNELS, None, CHANNELS, CHANNELS.abs() + 1, False, 0.1, 1e-5),
    aten.native_layer_norm.default: (A, [6], None, A[0], 1e-5),
    aten.permute.default: (IMAGE, [0, 2, 3, 1]),
    aten.roll.default: (IMAGE, [1, -1], [2, 3]),
    aten.select.int: (A, 1, 3),
    aten.sum.default: (A,),
    aten.sum.dim_IntList: (IMAGE, [2, 3], True),
    aten.threshold_backward.default: (A, B, 2.0),
    aten.transpose.int: (IMAGE, 1, 3),
    aten.unsqueeze.default: (A, 1),
    aten.view.default: (A, [3, -1]),
}
"""What operations are tried with; as many tensors as they take where nothing is said."""

KEYWORDS: dict[str, object] = {
    "alpha": 0.5,
    "approximate": "tanh",
    "beta": 3.0,
    "dtype": torch.float64,
    "implicit": True,
    "memory_format": torch.contiguous_format,
    "value": -2.0,
}
"""Keyword-only arguments: name -> a value that is not the default."""


def keywords_of(operation: torch._ops.OpOverload) -> dict[str, object]:
    named = (argument for argument in operation._schema.arguments if argument.kwarg_only and not argument.is_out)
    return {argument.name: KEYWORDS[argument.name] for argument in named}


def arguments_of(operation: torch._ops.OpOverload) -> tuple[object, ...]:
    if operation in ARGUMENTS:
        return ARGUMENTS[operation]
    inputs = sum(
        argument.type.kind() == "TensorType" and not argument.is_out for argument in operation._schema.arguments
    )
    return (A, B, B)[:inputs]


def copied(value: object) -> object:
    if isinstance(value, Tensor):
        return value.clone()
    return [copied(item) for item in value] if isinstance(value, list) else value


def called(function: Callable[..., object], operation: torch._ops.OpOverload, **keywords: object) -> tuple[Tensor, ...]:
    """Return what a function returns for an operation's arguments, and what it has made of the first of them."""
    args = [copied(argument) for argument in arguments_of(operation)]
    places = [argument.name for argument in operation._schema.arguments if argument.is_out]
    out = function(*args, **{name: torch.empty_like(A) for name in places}, **keywords)
    return *([out] if isinstance(out, Tensor) else out), *(arg for arg in args[:1] if isinstance(arg, Tensor))


@pytest.mark.parametrize("operation", FUNCTIONS, ids=str)
def test_functions_do_what_the_operations_do(operation: torch._ops.OpOverload) -> None:
    for found, expected in zip(called(FUNCTIONS[operation], operation), called(operation, operation), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("operation", [*filter(keywords_of, FUNCTIONS)], ids=str)
def test_they_take_the_same_keywords(operation: torch._ops.OpOverload) -> None:
    keywords = keywords_of(operation)
    pairs = zip(
        called(FUNCTIONS[operation], operation, **keywords), called(operation, operation, **keywords), strict=True
    )
    for found, expected in pairs:
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("operation", ENTRY_BY_ENTRY, ids=str)
def test_over_an_argument_the_result_is_the_same(operation: torch._ops.OpOverload) -> None:
    function, name = ENTRY_BY_ENTRY[operation]
    expected, _ = called(operation, operation)
    for place, argument in enumerate(arguments_of(operation)):
        if isinstance(argument, Tensor):
            args = [copied(value) for value in arguments_of(operation)]
            function(*args, **{name: args[place]})
            assert torch.equal(args[place], expected)


Line = Callable[[Tensor], tuple[Tensor, ...]]


def written(line: Line, x: Tensor) -> tuple[Transcript, Value, list[Value]]:
    transcript = Transcript([])
    given = transcript.new_input(x)
    with transcript:
        returned = line(x)
    return transcript, given, [transcript.value(each) for each in returned]


def program(line: Line, x: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    transcript, given, outputs = written(line, x)
    assert transcript.problem is None
    function = compiled(transcript.steps, [given], outputs)
    return lambda x: function(x, None)


def overwritten(line: Line) -> int:
    """Return how many steps write over an argument."""
    transcript, _, outputs = written(line, A.clone())
    steps = shortened(transcript.steps, outputs)
    return sum(
        step.function in dict(ENTRY_BY_ENTRY.values()) and ("out" in step.kwargs or "grad_input" in step.kwargs)
        for step in steps
    )


def test_what_nobody_needs_any_more_is_written_over() -> None:
    def line(x: Tensor) -> tuple[Tensor, ...]:
        return (((x + 1) * x).abs() - x,)

    assert overwritten(line) == 3
    assert peak(lambda: line(A)) == 2 * A.nbytes
    run = program(line, A)
    assert peak(lambda: run(A)) == A.nbytes


@pytest.mark.parametrize(
    "line",
    [
        lambda x: (x * 2,),
        lambda x: (y := x + 1, y * 2),
        lambda x: (z := (y := x + 1) * 2, z + y),
        lambda x: ((y := x + 1)[1:], y * 2),
        lambda x: ((x[:1] + 1) * x, x),
        lambda x: ((y := x + 1).t() * y.t().flip(0), y),
        lambda x: (torch.mul(y := x + 1, y[0]),),
        lambda x: ((x + 1) * x.double(),),
    ],
    ids=["the input", "returned", "used later", "a view returned", "broadcast", "laid out otherwise", "itself", "type"],
)
def test_what_somebody_needs_is_not(line: Line) -> None:
    given = A.clone()
    run = program(line, given)
    x = B.clone()
    expected = line(x.clone())
    for found, wanted in zip(run(x), expected, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(x, B)
    assert torch.equal(given, A)


def test_an_argument_beside_a_part_of_itself_is_not_written_over() -> None:
    """Its first row would be another one when the second is made."""
    assert overwritten(lambda x: (torch.mul(y := x + 1, y[0]),)) == 0
    assert overwritten(lambda x: (torch.mul(y := x + 1, y),)) == 1


def test_what_is_small_does_not_stay_in_what_is_large() -> None:
    assert overwritten(lambda x: ((x + 1)[:1] * 2,)) == 0
    assert overwritten(lambda x: ((x + 1)[:] * 2,)) == 1


def choose(tensors: Sequence[Tensor]) -> Tensor:
    """Stand for a rule that may return what it is given."""
    return tensors[0]


def test_what_a_choice_was_given_is_not_written_over() -> None:
    transcript = Transcript([])
    x = A.clone()
    given = transcript.new_input(x)
    with transcript:
        y = x + 1
        z = y * 2
    values = transcript.value(y), transcript.value(z)
    chosen = Value(None, -1, values[0].layout)
    steps = [transcript.steps[0], Step(choose, ([values[0]],), {}, chosen), transcript.steps[1]]
    run = compiled(steps, [given], [chosen, values[1]])
    assert torch.equal(run(x, None)[0], A + 1)


def test_memory_of_the_box_is_written_over_where_it_is_free() -> None:
    transcript, given, outputs = written(lambda x: (x * 3,), A.clone())
    for free in (frozenset[int](), frozenset([given.memory])):
        box = [A.clone()]
        kept = box[0]
        (found,) = compiled(transcript.steps, [], outputs, {given: 0}, free=free)(box)
        assert torch.equal(found, A * 3)
        assert (found is kept) == bool(free)
        assert box == [None]


def random_line(seed: int) -> Line:
    """Return a line of random operations, views among them."""

    def line(x: Tensor) -> tuple[Tensor, ...]:
        draw = random.Random(seed)
        tensors = [x, x[1:], x[:1] + 1]
        for _ in range(25):
            one, other = draw.choice(tensors), draw.choice(tensors)
            if one.shape[0] != other.shape[0] and 1 not in (one.shape[0], other.shape[0]):
                other = one
            made = draw.choice(
                [
                    lambda a, b: a + b,
                    lambda a, b: torch.sub(a, b, alpha=0.5),
                    lambda a, b: a * b * 0.5,
                    lambda a, b: a / (b.abs() + 1),
                    lambda a, b: a.clamp(min=-1, max=1),
                    lambda a, b: torch.maximum(a, -b),
                    lambda a, b: a[-2:],
                    lambda a, b: a.flip(1),
                    lambda a, b: a.sign().add_(b.mean()),
                    lambda a, b: aten.threshold_backward(a + b, b.expand_as(a + b), 0.1),
                ]
            )(one, other)
            tensors.append(made)
        return tuple(draw.sample(tensors[3:], 3))

    return line


@pytest.mark.parametrize("seed", range(60))
def test_random_lines(seed: int) -> None:
    line, given, x = random_line(seed), A.clone(), B.clone()
    run = program(line, given)
    for found, expected in zip(run(x), line(x.clone()), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(x, B)
    assert torch.equal(given, A)
