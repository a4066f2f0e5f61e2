"""How much memory the tensors of an explanation take at once, in bytes: exact, and the same on every machine."""

from collections.abc import Callable
from typing import Any
from weakref import finalize

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.convnext import CNBlock
from torchvision.ops import Permute

from lrp_cli.engine import library
from lrp_cli.engine.tracking import tensors_in
from lrp_cli.engine.transcript import ONLY_SHAPE
from lrp_cli.explainer import Explainer

BOUNDS = ((-2.2, -2.1, -1.9), (2.3, 2.5, 2.7))
UNTIL_THEN = 3
"""After so many explanations there is a program: the first one makes a plan, the others follow it."""


class Alive(TorchDispatchMode):
    """Adds up the memory of the tensors that were made and are still there.

    Attributes:
        peak: the most there was at once, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute an operation, and count what it made."""
        out = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs or {}))}
        for tensor in tensors_in(out):
            if tensor.is_meta:  # it has no memory
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                finalize(storage, self._sizes.pop, storage._cdata)
        self.peak = max(self.peak, self.held)
        return out

    @property
    def held(self) -> int:
        """How much there is now, in bytes."""
        return sum(self._sizes.values())


def peak(run: Callable[[], object]) -> int:
    """Return the most memory that tensors made by a call take at once."""
    with Alive() as alive:
        run()
    return alive.peak


def network() -> nn.Sequential:
    """Return a network in which activations of a few sizes take most of the memory, as in vgg16."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return (
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10)).eval().requires_grad_(False)
    )


def network_with_norms() -> nn.Sequential:
    """Return the same with batch norms."""
    plain = network()
    layers: list[nn.Module] = []
    for layer in plain:
        layers += [layer, nn.BatchNorm2d(layer.out_channels)] if isinstance(layer, nn.Conv2d) else [layer]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def network_with_values_of_both_signs() -> nn.Sequential:
    """Return the same with another activation, behind which values have both signs."""
    model = network_with_norms()
    return nn.Sequential(*(nn.SiLU() if isinstance(layer, nn.ReLU) else layer for layer in model)).eval()


def network_of_perceptrons(activation: type[nn.Module]) -> nn.Sequential:
    """Return a network that sees patches, each with a perceptron of its own: what transformers and ConvNeXt hold."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 4, 4), nn.Flatten(2), Permute([0, 2, 1])]
    for _ in range(8):
        layers += [nn.LayerNorm(24), nn.Linear(24, 96), activation(), nn.Linear(96, 24)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 256, 10)).eval().requires_grad_(False)


def network_of_convnext_blocks() -> nn.Sequential:
    """Return a network of sums of what came before and what a convolution and a perceptron made of it."""
    torch.manual_seed(0)
    blocks = [CNBlock(24, 1.0, 0.0) for _ in range(8)]
    layers = [nn.Conv2d(3, 24, 4, 4), *blocks, nn.Flatten(), nn.Linear(24 * 256, 10)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


class Attention(nn.Module):
    """Attention with four heads, written out as Swin does; of one layer's output all of queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.project = nn.LayerNorm(24), nn.Linear(24, 72), nn.Linear(24, 24)
        self.bias = nn.Parameter(torch.randn(4, 256, 256))

    def forward(self, x: Tensor) -> Tensor:
        """Return x, shape (N, 256, 24), with what was attended to added."""
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 6).permute(2, 0, 3, 1, 4)
        weights = ((q * 6**-0.5) @ k.transpose(-2, -1) + self.bias).softmax(dim=-1)
        return x + self.project((weights @ v).transpose(1, 2).reshape(x.shape))


def network_of_attentions() -> nn.Sequential:
    """Return a network of attentions and perceptrons, in which attention weights take most of the memory."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 4, 4), nn.Flatten(2), Permute([0, 2, 1])]
    layers += [Attention() for _ in range(6)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 256, 10)).eval().requires_grad_(False)


NETWORK, X = network(), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def gradient_times_input(network: nn.Module = NETWORK) -> Tensor:
    """Return what explanations are compared with."""
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[:, 0].sum(), x)
    return X * gradient


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have programs made as soon as there is a plan that held."""
    monkeypatch.setattr(library, "AFTER", 1)


@pytest.mark.parametrize(
    ("config", "at_most"),
    [
        ("epsilon", 1.1),
        ("epsilon-plus", 1.2),
        ("epsilon-plus-flat", 1.2),
        ("epsilon-gamma-box", 1.3),
        ("epsilon-alpha2-beta1", 1.3),
        ("epsilon-alpha2-beta1-flat", 1.3),
    ],
)
@pytest.mark.parametrize("explanations", [1, UNTIL_THEN], ids=["by a plan", "by a program"])
def test_an_explanation_takes_little_more_than_a_gradient(explanations: int, config: str, at_most: float) -> None:
    """Transformed weights are there already: they are kept."""
    explainer = Explainer(NETWORK, config, bounds=BOUNDS)
    for _ in range(explanations):
        explainer.explain(X)
    assert peak(lambda: explainer.explain(X, 0)) <= at_most * peak(gradient_times_input)


@pytest.mark.parametrize("config", ["epsilon", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1-flat"])
def test_the_first_explanation_holds_no_results_that_the_model_let_go_of(config: str) -> None:
    """Outputs of convolutions in front of batch norms, and large transformed weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (3, *[32] * 8):
        layers += [nn.Conv2d(inputs, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)]
    wide = [nn.Conv2d(32, 1024, 3, stride=8), nn.ReLU(), nn.Conv2d(1024, 64, 3), nn.ReLU()]
    model = nn.Sequential(*layers, *wide, nn.Flatten(), nn.Linear(64 * 36, 10)).eval().requires_grad_(False)

    def gradient() -> None:
        x = X.clone().requires_grad_()
        torch.autograd.grad(model(x)[:, 0].sum(), x)

    assert peak(lambda: Explainer(model, config, bounds=BOUNDS).explain(X, 0)) <= 0.8 * peak(gradient)


SEVERAL = ("epsilon", "epsilon-plus-flat", "epsilon-gamma-box")


@pytest.mark.parametrize(
    ("explanations", "config", "at_most"),
    # The pixels, which z-box makes two sums of, are a larger part here than in a network with more channels.
    [
        *[(explanations, config, 1.7) for explanations in (0, 1) for config in SEVERAL],
        (UNTIL_THEN, "epsilon", 1.5),
        (UNTIL_THEN, "epsilon-plus-flat", 1.5),
        (UNTIL_THEN, "epsilon-gamma-box", 1.6),
    ],
)
def test_several_targets_share_one_tensor_a_layer(explanations: int, config: str, at_most: float) -> None:
    """The first time, by a plan, and by a program."""
    explainer = Explainer(NETWORK, config, bounds=BOUNDS)
    for _ in range(explanations):
        explain_several(explainer)
    assert peak(lambda: explain_several(explainer)) <= at_most * peak(gradient_times_input)


@pytest.mark.parametrize("config", SEVERAL)
def test_several_targets_the_first_time_with_norms(config: str) -> None:
    """A gradient holds the outputs of the convolutions, too."""
    network = network_with_norms()
    explainer = Explainer(network, config, bounds=BOUNDS)
    assert peak(lambda: explain_several(explainer)) <= 1.05 * peak(lambda: gradient_times_input(network))


@pytest.mark.parametrize("explanations", [0, 1, UNTIL_THEN], ids=["the first", "by a plan", "by a program"])
def test_several_targets_share_one_tensor_and_the_input_where_it_has_both_signs(explanations: int) -> None:
    """Neither the output, nor that of the activation, nor the sums that their ratio is made of."""
    net = network_with_values_of_both_signs()
    explainer = Explainer(net, "epsilon-plus", bounds=BOUNDS)
    for _ in range(explanations):
        explain_several(explainer)
    assert peak(lambda: explain_several(explainer)) <= 1.1 * peak(lambda: gradient_times_input(net))


@pytest.mark.parametrize("explanations", [0, 1, UNTIL_THEN], ids=["the first", "by a plan", "by a program"])
def test_several_targets_share_one_tensor_of_an_activation_behind_a_linear_layer(explanations: int) -> None:
    """The ratio of its output to its input; either of them would be a second one."""
    net = network_of_perceptrons(nn.GELU)
    explainer = Explainer(net, "epsilon")
    for _ in range(explanations):
        explain_several(explainer)
    assert peak(lambda: explain_several(explainer)) <= 1.3 * peak(lambda: gradient_times_input(net))


def explain_several(explainer: Explainer) -> None:
    """Explain five targets of one forward pass."""
    forward = explainer.forward(X)
    for target in range(5):
        forward.explain(target, keep=target < 4)


@pytest.mark.parametrize("operation", ONLY_SHAPE, ids=lambda operation: operation.name())
def test_operations_that_read_the_shape_of_an_argument_alone(operation: Any) -> None:
    """Each is called as torch calls it, with its argument as it is and with one that holds nothing."""
    called: list[tuple[Any, Any, Tensor]] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is operation:
                called.append((args, kwargs or {}, out))
            return out

    name = operation.overloadpacket.__name__.removesuffix("_backward").removesuffix("_with_indices")
    x = torch.randn(2, 3, *[8] * (3 if "3d" in name else 2), requires_grad=True)
    with Noting():
        getattr(nn.functional, name)(x, 3).square().sum().backward()
    ((args, kwargs, out),) = called
    hollow = torch.full((), torch.nan).expand(x.shape)
    place = ONLY_SHAPE[operation]
    assert torch.equal(operation(*args[:place], hollow, *args[place + 1 :], **kwargs), out)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU])
@pytest.mark.parametrize("explanations", [0, 1, UNTIL_THEN], ids=["the first", "by a plan", "by a program"])
def test_a_linear_layer_holds_no_more_than_a_gradient(explanations: int, activation: type[nn.Module]) -> None:
    """Its output, and neither its input, which epsilon does not read, nor what an activation made of the output."""
    net = network_of_perceptrons(activation)
    explainer = Explainer(net, "epsilon")
    for _ in range(explanations):
        explainer.explain(X)
    assert peak(lambda: explainer.explain(X, 0)) <= 1.2 * peak(lambda: gradient_times_input(net))


@pytest.mark.parametrize("explanations", [0, 1, UNTIL_THEN], ids=["the first", "by a plan", "by a program"])
def test_a_convolution_holds_no_input_that_its_rule_does_not_read(explanations: int) -> None:
    """A gradient does; the outputs of the linear layers behind it, which a gradient does not, are as large."""
    net = network_of_convnext_blocks()
    explainer = Explainer(net, "epsilon")
    for _ in range(explanations):
        explainer.explain(X)
    assert peak(lambda: explainer.explain(X, 0)) <= 1.1 * peak(lambda: gradient_times_input(net))


@pytest.mark.parametrize(("config", "at_most"), [("attnlrp", 1.25), ("cp-lrp", 0.9)])
@pytest.mark.parametrize("explanations", [0, 1, UNTIL_THEN], ids=["the first", "by a plan", "by a program"])
def test_attention_holds_no_more_than_a_gradient(explanations: int, config: str, at_most: float) -> None:
    """Weights, and neither the logits they were made of, nor copies of what a layer's output has parts of.

    What a softmax absorbs is added up of one more tensor of the weights' size, for a moment: a sixth of all here.
    """
    net = network_of_attentions()
    explainer = Explainer(net, config)
    for _ in range(explanations):
        explainer.explain(X)
    assert peak(lambda: explainer.explain(X, 0)) <= at_most * peak(lambda: gradient_times_input(net))
