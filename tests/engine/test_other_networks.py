"""Networks of other kinds than the classics of vision, and the ways in which people write them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import (
    LRP0,
    LRP0_ATTNLRP,
    Case,
    assert_right,
    assert_samples_independent,
    assert_twins,
    build,
    case,
    explain,
    fingerprint,
    inputs,
    ruleset,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import SqueezeExcitation, StochasticDepth

from lrp_cli.errors import EngineError
from lrp_cli.rulesets import NamedRuleset

CONFIGS: dict[str, NamedRuleset | str] = {
    "lrp-0": LRP0,
    "epsilon": "epsilon",
    "gamma": ruleset({"kind": "batch_norm", "rule": "epsilon"}, {"rule": "gamma"}),
}

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


# Sound, volumes, text


class Speech(nn.Module):
    """Waveforms (N, 1, T): strided convolutions with group norm, a depthwise block, statistics pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(1, 8, 10, stride=5, bias=False),
            nn.GroupNorm(4, 8),
            nn.GELU(),
            nn.Conv1d(8, 8, 3, stride=2, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
        )
        self.depthwise = nn.Conv1d(8, 8, 4, groups=8, padding="same")
        self.norm = nn.BatchNorm1d(8)
        self.pointwise = nn.Conv1d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.pointwise(F.silu(self.norm(self.depthwise(x))))
        return self.head(torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1))


def volume() -> nn.Module:
    """Volumes (N, 2, D, H, W)."""
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm3d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool3d(2),
        nn.ConvTranspose3d(4, 4, 2, stride=2, groups=2),
        nn.InstanceNorm3d(4, affine=True),
        nn.LeakyReLU(0.1),
        nn.Upsample(scale_factor=0.5, mode="trilinear", align_corners=False),
        nn.AvgPool3d(2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


class Text(nn.Module):
    """Embedded tokens (N, L, E) plus positions, through torch's transformer encoder."""

    def __init__(self, *, batch_first: bool, norm_first: bool, activation: str = "gelu", masked: str = "") -> None:
        super().__init__()
        self.batch_first, self.masked = batch_first, masked
        self.positions = nn.Parameter(torch.zeros(1, 5, 8))
        layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.1, activation=activation, batch_first=batch_first, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = padding = None
        if self.masked == "causal":
            mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
        if self.masked == "padding":
            padding = (torch.arange(5) >= 4).expand(len(x), 5)
        x = x + self.positions
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, mask=mask, src_key_padding_mask=padding)
        return self.head(x[:, 0] if self.batch_first else x[0])


def text(masked: str = "", **options: Any) -> Callable[[], nn.Module]:
    return lambda: Text(masked=masked, **options)


class TextByHand(nn.Module):
    """The same encoder, out of linear layers, softmax and products."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text

    def attention(self, module: nn.MultiheadAttention, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
        heads = []
        for i in range(module.num_heads):
            part = slice(i * module.head_dim, (i + 1) * module.head_dim)
            logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(module.head_dim)
            if self.text.masked == "causal":
                logits = logits.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -1e300)
            heads.append(logits.softmax(dim=-1) @ v[..., part])
        return module.out_proj(torch.cat(heads, dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.text.positions
        for layer in self.text.encoder.layers:
            attend, feed = layer.self_attn, lambda x, of=layer: of.linear2(of.activation(of.linear1(x)))
            if layer.norm_first:
                x = self.attention(attend, layer.norm1(x)) + x
                x = feed(layer.norm2(x)) + x
            else:
                x = layer.norm1(x + self.attention(attend, x))
                x = layer.norm2(x + feed(x))
        return self.text.head(self.text.encoder.norm(x)[:, 0])


def fourier(x: Tensor) -> Tensor:
    return torch.fft.fft2(x).real


class Mixing(nn.Module):
    """Tokens mixed by a Fourier transform in place of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(F.relu(fourier(self.before(x))).mean(dim=1))


NETWORKS = [
    pytest.param(Speech, (3, 1, 160), id="speech"),
    pytest.param(volume, (3, 2, 4, 8, 8), id="volume"),
    pytest.param(text(batch_first=True, norm_first=False), (3, 5, 8), id="text"),
    pytest.param(text(batch_first=True, norm_first=True), (3, 5, 8), id="text, norm first"),
    pytest.param(text(batch_first=True, norm_first=True, activation="relu"), (3, 5, 8), id="text, relu"),
    pytest.param(text("causal", batch_first=True, norm_first=True), (3, 5, 8), id="text, causal"),
    pytest.param(text("padding", batch_first=True, norm_first=False), (3, 5, 8), id="text, padding"),
    pytest.param(text(batch_first=False, norm_first=False), (3, 5, 8), id="text, batch second"),
    pytest.param(
        text(batch_first=False, norm_first=True),
        (3, 5, 8),
        id="text, batch second, norm first",
    ),
    pytest.param(Mixing, (3, 5, 8), id="fourier mixing"),
]


@every_config
@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_networks_of_other_kinds(make: Callable[[], nn.Module], shape: tuple[int, ...], config: Any) -> None:
    network = case(make, *shape)
    before = fingerprint(network.model)
    for target in (None, 1):
        assert_right(explain(network, config, target), network)
    assert_samples_independent(network, config, 1e-9)
    assert fingerprint(network.model) == before


@pytest.mark.parametrize("attention", [LRP0, LRP0_ATTNLRP], ids=["cp-lrp", "attnlrp"])
@pytest.mark.parametrize("masked", ["", "causal"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
def test_encoder_layers_equal_an_encoder_by_hand(norm_first: bool, masked: str, attention: NamedRuleset) -> None:
    network = case(text(masked, batch_first=True, norm_first=norm_first), 2, 5, 8)
    by_hand = Case(TextByHand(network.model).eval(), network.x)
    assert_twins(explain(by_hand, attention, 1), explain(network, attention, 1))


@pytest.mark.parametrize("attention", [LRP0, LRP0_ATTNLRP], ids=["cp-lrp", "attnlrp"])
def test_relevance_of_tokens_does_not_depend_on_where_the_batch_is(attention: NamedRuleset) -> None:
    """With the batch first or second: the same relevance per token, the sum over its features."""
    network = case(text(batch_first=True, norm_first=True), 1, 5, 8)
    turned = case(text(batch_first=False, norm_first=True), 1, 5, 8)
    turned.model.load_state_dict(network.model.state_dict())
    first, second = explain(network, attention, 1), explain(turned, attention, 1)
    assert_twins(first, second)
    tokens = first.relevance.sum(dim=2)
    assert tokens.shape == (1, 5)
    torch.testing.assert_close(tokens.sum(1) + first.absorbed_sum, first.scores, rtol=1e-10, atol=1e-12)


def test_padded_tokens_get_no_relevance() -> None:
    network = case(text("padding", batch_first=True, norm_first=False), 3, 5, 8)
    for config in (LRP0, LRP0_ATTNLRP):
        relevance = explain(network, config).relevance
        assert (relevance[:, 4] == 0).all()
        assert (relevance[:, :4] != 0).all()


# Parts: conv -> the part in question -> conv -> pooling -> linear


class Part(nn.Module):
    def __init__(self, step: Callable[[Any, Tensor], Tensor], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.fc = nn.Linear(5, 6)
        self.m = nn.ModuleDict(modules)
        self.gain = nn.Parameter(torch.randn(4, 1, 1))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        x = self.step(self, self.conv1(x))
        return self.fc(F.relu(self.conv2(x)).mean(dim=(2, 3)))


Step = Callable[[Any, Tensor], Tensor]


def part(step: Step, **modules: Callable[[], nn.Module]) -> Case:
    return case(lambda: Part(step, {name: make() for name, make in modules.items()}), 3, 3, 8, 8)


def one_by_one(channels: int = 4) -> nn.Module:
    return nn.Conv2d(4, channels, 1)


def squeeze() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1))


def squeeze_linear() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2, bias=False), nn.SiLU(), nn.Linear(2, 4, bias=False), nn.Sigmoid())


def eca_weights(net: Any, x: Tensor) -> Tensor:
    y = net.m["conv"](F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2))
    return y.transpose(-1, -2).unsqueeze(-1).sigmoid()


def gate_in_place(net: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y.mul_(torch.sigmoid(net.m["squeeze"](x)))
    return y


def gated(a: Tensor, b: Tensor) -> Tensor:
    return a * torch.sigmoid(b)


def attention_pool(net: Any, x: Tensor) -> Tensor:
    """Global context: a softmax over positions weighs them."""
    weights = net.m["one"](x).flatten(2).softmax(dim=2)
    context = torch.einsum("ncp,nop->nc", x.flatten(2), weights)
    return x + context[:, :, None, None]


def selective_kernels(net: Any, x: Tensor) -> Tensor:
    """Branches weighed against each other by a softmax over the branches."""
    branches = torch.stack([net.m["a"](x), net.m["b"](x)], dim=1)
    weights = net.m["squeeze"](branches.sum(1)).unflatten(1, (1, 4))
    weights = torch.cat([weights, -weights], dim=1).softmax(dim=1)
    return (branches * weights).sum(dim=1)


# A gate and its twin, in which the gate is a constant.
GATES: dict[str, tuple[Step, Step, dict[str, Callable[[], nn.Module]]]] = {
    "sigmoid": (
        lambda net, x: x * torch.sigmoid(net.m["squeeze"](x)),
        lambda net, x: x * torch.sigmoid(net.m["squeeze"](x)).detach(),
        {"squeeze": squeeze},
    ),
    "hard sigmoid, gate first": (
        lambda net, x: F.hardsigmoid(net.m["squeeze"](x)) * x,
        lambda net, x: F.hardsigmoid(net.m["squeeze"](x)).detach() * x,
        {"squeeze": squeeze},
    ),
    "tanh": (
        lambda net, x: net.m["squeeze"](x).tanh() * x,
        lambda net, x: net.m["squeeze"](x).tanh().detach() * x,
        {"squeeze": squeeze},
    ),
    "in place": (
        gate_in_place,
        lambda net, x: x * torch.sigmoid(net.m["squeeze"](x)).detach(),
        {"squeeze": squeeze},
    ),
    "torchvision": (
        lambda net, x: net.m["se"](x),
        lambda net, x: x * net.m["se"]._scale(x).detach(),
        {"se": lambda: SqueezeExcitation(4, 2)},
    ),
    "torchvision, hard sigmoid": (
        lambda net, x: net.m["se"](x),
        lambda net, x: x * net.m["se"]._scale(x).detach(),
        {"se": lambda: SqueezeExcitation(4, 2, scale_activation=nn.Hardsigmoid)},
    ),
    "linear, viewed": (
        lambda net, x: x * net.m["squeeze"](x.mean((2, 3))).view(-1, 4, 1, 1).expand_as(x),
        lambda net, x: x * net.m["squeeze"](x.mean((2, 3))).view(-1, 4, 1, 1).detach(),
        {"squeeze": squeeze_linear},
    ),
    "convolution over channels": (
        lambda net, x: x * eca_weights(net, x).expand_as(x),
        lambda net, x: x * eca_weights(net, x).detach(),
        {"conv": lambda: nn.Conv1d(1, 1, 3, padding=1)},
    ),
    "positions": (
        lambda net, x: x * net.m["one"](x).sigmoid() + x * net.m["squeeze"](x).sigmoid(),
        lambda net, x: x * net.m["one"](x).sigmoid().detach() + x * net.m["squeeze"](x).sigmoid().detach(),
        {"one": lambda: one_by_one(1), "squeeze": squeeze},
    ),
    "einsum": (
        lambda net, x: torch.einsum("nchw,nc->nchw", x, net.m["squeeze"](x).sigmoid().flatten(1)),
        lambda net, x: torch.einsum("nchw,nc->nchw", x, net.m["squeeze"](x).sigmoid().flatten(1).detach()),
        {"squeeze": squeeze},
    ),
    "attention pooling": (
        attention_pool,
        lambda net, x: (
            x + (x.flatten(2) * net.m["one"](x).flatten(2).softmax(dim=2).detach()).sum(dim=2)[:, :, None, None]
        ),
        {"one": lambda: one_by_one(1)},
    ),
    "gated linear unit": (
        lambda net, x: F.glu(net.m["wide"](x), dim=1),
        lambda net, x: net.m["wide"](x)[:, :4] * net.m["wide"](x)[:, 4:].sigmoid().detach(),
        {"wide": lambda: one_by_one(8)},
    ),
    "gated linear unit, module": (
        lambda net, x: nn.GLU(dim=1)(net.m["wide"](x)),
        lambda net, x: net.m["wide"](x)[:, :4] * net.m["wide"](x)[:, 4:].sigmoid().detach(),
        {"wide": lambda: one_by_one(8)},
    ),
    "gated linear unit by hand": (
        lambda net, x: gated(*net.m["wide"](x).chunk(2, dim=1)),
        lambda net, x: net.m["wide"](x)[:, :4] * net.m["wide"](x)[:, 4:].sigmoid().detach(),
        {"wide": lambda: one_by_one(8)},
    ),
    "SiLU by hand": (
        lambda net, x: x * x.sigmoid(),
        lambda net, x: F.silu(x),
        {},
    ),
    "Mish by hand": (
        lambda net, x: x * torch.tanh(F.softplus(x)),
        lambda net, x: F.mish(x),
        {},
    ),
}
EXPANDED = "gate.expand_as(x) is no gate any more, because x depends on the input too"


@every_config
@pytest.mark.parametrize("name", GATES)
def test_gates_are_constants(name: str, config: Any) -> None:
    step, twin, modules = GATES[name]
    network, constant = part(step, **modules), part(twin, **modules)
    explanation = explain(network, config, target=2)
    assert_right(explanation, network)
    assert_twins(explanation, explain(constant, config, target=2))


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :2], x[:, 2:]


@pytest.mark.parametrize(
    "multiply",
    [
        lambda a, b: a * b,
        torch.mul,
        lambda a, b: a.clone().mul_(b),
        lambda a, b: torch.einsum("nchw,nchw->nchw", a, b),
    ],
    ids=["operator", "function", "in place", "einsum"],
)
def test_products_without_a_gate_share_half_and_half(multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
    """R of a product goes half to each factor: what reaches them is checked against a sum with these shares."""

    def step(net: Any, x: Tensor) -> Tensor:
        a, b = halves(x)
        return torch.cat([multiply(F.silu(a), b), b], dim=1)

    def shares(net: Any, x: Tensor) -> Tensor:
        a, b = halves(x)
        half = F.silu(a) * b.detach() / 2 + F.silu(a).detach() * b / 2
        return torch.cat([half, b], dim=1)

    network = part(step)
    assert_right(explain(network, LRP0, 2), network)
    assert_twins(explain(network, LRP0, 2), explain(part(shares), LRP0, 2))


def stochastic_depth(net: Any, x: Tensor) -> Tensor:
    return StochasticDepth(0.5, "row").eval()(F.relu(x)) + x


def global_response_norm(net: Any, x: Tensor) -> Tensor:
    size = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + net.gain * (x * (size / (size.mean(dim=1, keepdim=True) + 1e-6)).detach()) + 0.1


IDENTITY_GRID = F.affine_grid(torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 0.9, 0.1]]]), [1, 4, 8, 8], align_corners=False)
INDEX = torch.tensor([2, 0, 3, 1])
HALVES = torch.full((8, 8), 0.5, dtype=torch.float64)
MASK = torch.rand(8, 8, generator=torch.Generator().manual_seed(2)) < 0.5

# A way to write something, and a plainer way.
WAYS: dict[str, tuple[Step, Step, dict[str, Callable[[], nn.Module]]]] = {
    "layer scale": (lambda net, x: net.gain * x, lambda net, x: x * net.gain.detach(), {}),
    "layer scale in place": (lambda net, x: F.relu(x).mul_(net.gain), lambda net, x: F.relu(x) * net.gain, {}),
    "channel shuffle by hand": (
        lambda net, x: x.view(len(x), 2, 2, 8, 8).transpose(1, 2).contiguous().view(len(x), -1, 8, 8),
        lambda net, x: x[:, [0, 2, 1, 3]],
        {},
    ),
    "channel shuffle": (lambda net, x: nn.ChannelShuffle(2)(x), lambda net, x: x[:, [0, 2, 1, 3]], {}),
    "pixel shuffle and back": (lambda net, x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), lambda net, x: x, {}),
    "patches and back": (
        lambda net, x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
        lambda net, x: x,
        {},
    ),
    "windows and back": (
        lambda net, x: x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(x.shape),
        lambda net, x: x,
        {},
    ),
    "stochastic depth": (stochastic_depth, lambda net, x: F.relu(x) + x, {}),
    "dropout": (
        lambda net, x: net.m["c"](net.m["b"](net.m["a"](x))),
        lambda net, x: x,
        {"a": nn.Dropout, "b": nn.Dropout2d, "c": nn.AlphaDropout},
    ),
    "sum of three": (
        lambda net, x: net.m["a"](x) + (x + F.relu(x)),
        lambda net, x: x + net.m["a"](x) + F.relu(x),
        {"a": one_by_one},
    ),
    "sum of three, by sum()": (
        lambda net, x: sum([F.relu(x), net.m["a"](x), x]),
        lambda net, x: x + net.m["a"](x) + F.relu(x),
        {"a": one_by_one},
    ),
    "sum of three, stacked": (
        lambda net, x: torch.stack([F.relu(x), x, net.m["a"](x)], dim=1).sum(dim=1),
        lambda net, x: x + net.m["a"](x) + F.relu(x),
        {"a": one_by_one},
    ),
    "sum of three, as a mean": (
        lambda net, x: torch.stack([x, F.relu(x), net.m["a"](x)]).mean(dim=0) * 3,
        lambda net, x: x + net.m["a"](x) + F.relu(x),
        {"a": one_by_one},
    ),
    "sum of three, in place": (
        lambda net, x: torch.add(net.m["a"](x), x).add_(F.relu(x)),
        lambda net, x: x + net.m["a"](x) + F.relu(x),
        {"a": one_by_one},
    ),
    "sum of two, by weight": (
        lambda net, x: torch.lerp(x, F.relu(x), 0.25),
        lambda net, x: 0.75 * x + 0.25 * F.relu(x),
        {},
    ),
    "scaled sum": (
        lambda net, x: torch.addcmul(x, net.gain, F.relu(x), value=2),
        lambda net, x: x + 2 * net.gain * F.relu(x),
        {},
    ),
    "difference from nothing": (lambda net, x: 0 - x, lambda net, x: -x, {}),
    "difference from one": (lambda net, x: 1.0 - x, lambda net, x: -x + 1.0, {}),
    "halves exchanged": (
        lambda net, x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1),
        lambda net, x: x[:, [2, 3, 0, 1]],
        {},
    ),
    "index": (lambda net, x: torch.index_select(x, 1, INDEX), lambda net, x: x[:, INDEX], {}),
    "gather": (
        lambda net, x: x.gather(1, INDEX[None, :, None, None].expand(len(x), 4, 8, 8)),
        lambda net, x: x[:, INDEX],
        {},
    ),
    "padding by zeros": (
        lambda net, x: F.pad(x, (1, 2, 0, 1))[:, :, :8, 1:9],
        lambda net, x: x,
        {},
    ),
    "padding by a constant": (
        lambda net, x: F.pad(x[..., :7], (0, 1), value=0.5),
        lambda net, x: torch.cat([x[..., :7], torch.full_like(x[..., :1], 0.5)], dim=3),
        {},
    ),
    "masked fill": (
        lambda net, x: x.masked_fill(MASK, 0.5),
        lambda net, x: x * ~MASK + 0.5 * MASK.to(x),
        {},
    ),
    "constant in single precision": (
        lambda net, x: x + HALVES.float(),
        lambda net, x: x + HALVES,
        {},
    ),
    "where": (lambda net, x: torch.where(MASK, x, F.relu(x)), lambda net, x: x * MASK + F.relu(x) * ~MASK, {}),
    "where, method": (lambda net, x: x.where(MASK, 0.5), lambda net, x: x * MASK + 0.5 * (~MASK).to(x), {}),
    "nearest neighbour, twice the size": (
        lambda net, x: F.interpolate(x, scale_factor=2),
        lambda net, x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
        {},
    ),
    "maxout": (
        lambda net, x: torch.maximum(x, net.m["a"](x)),
        lambda net, x: torch.stack([x, net.m["a"](x)]).amax(dim=0),
        {"a": one_by_one},
    ),
    "maxout, by max": (
        lambda net, x: torch.stack([x, net.m["a"](x)]).max(dim=0).values,
        lambda net, x: torch.stack([x, net.m["a"](x)]).amax(dim=0),
        {"a": one_by_one},
    ),
    "global maximum": (
        lambda net, x: x + F.adaptive_max_pool2d(x, 1),
        lambda net, x: x + x.amax(dim=(2, 3), keepdim=True),
        {},
    ),
    "reused": (
        lambda net, x: net.m["a"](F.relu(net.m["a"](x))),
        lambda net, x: F.conv2d(
            F.relu(F.conv2d(x, net.m["a"].weight, net.m["a"].bias)), net.m["a"].weight, net.m["a"].bias
        ),
        {"a": one_by_one},
    ),
    "linear over channels last": (
        lambda net, x: net.m["a"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda net, x: F.conv2d(x, net.m["a"].weight[:, :, None, None], net.m["a"].bias),
        {"a": lambda: nn.Linear(4, 4)},
    ),
    "global response norm": (
        global_response_norm,
        lambda net, x: x * (1 + net.gain * size_ratio(x)) + 0.1,
        {},
    ),
    "checkpointed": (
        lambda net, x: torch.utils.checkpoint.checkpoint(net.m["a"], x, use_reentrant=False),
        lambda net, x: net.m["a"](x),
        {"a": lambda: nn.Sequential(one_by_one(), nn.SiLU())},
    ),
    "not on the path to the score": (
        lambda net, x: (net.m["a"](x).exp().sum(), x)[1],
        lambda net, x: x,
        {"a": one_by_one},
    ),
}


def size_ratio(x: Tensor) -> Tensor:
    size = x.norm(p=2, dim=(2, 3), keepdim=True)
    return (size / (size.mean(dim=1, keepdim=True) + 1e-6)).detach()


@every_config
@pytest.mark.parametrize("name", WAYS)
def test_ways_to_write_the_same(name: str, config: Any) -> None:
    way, plain, modules = WAYS[name]
    network, twin = part(way, **modules), part(plain, **modules)
    explanation = explain(network, config, target=2)
    assert_right(explanation, network)
    assert_twins(explanation, explain(twin, config, target=2))


def test_unknown_operations_do_not_settle_rules_too_early() -> None:
    """What ``last`` means is known at the end only, whatever has to be tried out on the way."""
    last = ruleset({"last": True, "rule": "zplus"}, {"rule": "epsilon"})
    by_name = ruleset({"name": "fc", "rule": "zplus"}, {"rule": "epsilon"})
    network = part(lambda net, x: torch.maximum(x, net.m["a"](x)), a=one_by_one)
    explanations = [explain(network, config, 2, on_unknown="gradient") for config in (last, by_name)]
    torch.testing.assert_close(explanations[0].relevance, explanations[1].relevance, rtol=1e-12, atol=0)


# Only required to balance: there is no plainer way.
PARTS: dict[str, tuple[Step, dict[str, Callable[[], nn.Module]]]] = {
    "bilinear": (lambda net, x: F.interpolate(x, size=(5, 11), mode="bilinear", align_corners=False), {}),
    "bicubic": (lambda net, x: F.interpolate(x, scale_factor=1.5, mode="bicubic", antialias=True), {}),
    "area": (lambda net, x: F.interpolate(x, size=(4, 4), mode="area"), {}),
    "grid sample": (
        lambda net, x: F.grid_sample(x, IDENTITY_GRID.to(x).expand(len(x), -1, -1, -1), align_corners=False),
        {},
    ),
    "reflected padding": (lambda net, x: F.pad(x, (1, 1, 2, 2), mode="reflect"), {}),
    "circular padding": (lambda net, x: F.pad(x, (1, 1, 2, 2), mode="circular"), {}),
    "selective kernels": (selective_kernels, {"a": one_by_one, "b": one_by_one, "squeeze": squeeze}),
    "lp pooling": (lambda net, x: F.lp_pool2d(x, 2, 2), {}),
    "cumulative sum": (lambda net, x: x.cumsum(dim=2), {}),
    "sorted": (lambda net, x: x.sort(dim=1).values, {}),
    "top of the channels": (lambda net, x: x.topk(4, dim=1).values, {}),
    "Fourier": (lambda net, x: torch.fft.irfft2(torch.fft.rfft2(x) * 2.0, s=(8, 8)), {}),
    "norm of positions": (lambda net, x: x + x.norm(dim=1, keepdim=True), {}),
    "dilated, grouped": (
        lambda net, x: net.m["a"](x),
        {"a": lambda: nn.Conv2d(4, 4, 3, dilation=2, groups=2, padding="same", padding_mode="replicate")},
    ),
    "transposed": (
        lambda net, x: net.m["a"](x),
        {"a": lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2)},
    ),
}


@every_config
@pytest.mark.parametrize("name", PARTS)
def test_parts_balance(name: str, config: Any) -> None:
    step, modules = PARTS[name]
    network = part(step, **modules)
    assert_right(explain(network, config), network)
    assert_samples_independent(network, config, 1e-9)


# Activations


ACTIVATIONS = [
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Softsign, nn.Sigmoid, nn.Hardsigmoid,
    nn.Tanh, nn.Softplus, nn.LogSigmoid, nn.Softmax2d,
]  # fmt: skip


@every_config
@pytest.mark.parametrize(
    "kind",
    ACTIVATIONS,
    ids=lambda kind: kind.__name__,
)
def test_activations_balance(kind: type[nn.Module], config: Any) -> None:
    network = part(lambda net, x: net.m["a"](x), a=kind)
    assert_right(explain(network, config), network)
    assert_samples_independent(network, config, 1e-9)


@pytest.mark.parametrize("make", [nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.ELU, nn.Tanh, nn.Softsign, nn.ReLU6])
def test_activations_hand_relevance_through(make: Callable[[], nn.Module]) -> None:
    """Relevance of x is that of f(x): a convolution without bias after it, and x itself, get what it carries."""
    model = build(lambda: nn.Sequential(make(), nn.Flatten(), nn.Linear(12, 4, bias=False)).double())
    x = inputs(3, 3, 2, 2)
    explanation = explain(Case(model, x), LRP0, target=1)
    expected = model[0](x) * model[2].weight[1].view(3, 2, 2)
    torch.testing.assert_close(explanation.relevance, expected.detach(), rtol=1e-10, atol=1e-12)
    assert explanation.absorbed_sum.abs().max() < 1e-12


# Norms


def variance(x: Tensor, dim: Any = -1) -> Tensor:
    return x.var(dim=dim, keepdim=True, unbiased=False)


def spread(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True)


def var_mean(x: Tensor) -> Tensor:
    var, mean = torch.var_mean(x, dim=-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(var + 1e-5)


LAYER_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "divided by sqrt": lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance(x) + 1e-5),
    "power": lambda x: (x - x.mean(-1, keepdim=True)) / (spread(x) + 1e-5) ** 0.5,
    "in place": lambda x: x.sub(x.mean(-1, keepdim=True)).div_((spread(x) + 1e-5).sqrt()),
    "var_mean": var_mean,
    "times rsqrt": lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(variance(x) + 1e-5),
    "times inverse": lambda x: (x - x.mean(-1, keepdim=True)) * (1 / torch.sqrt(variance(x) + 1e-5)),
    "times power": lambda x: (x - x.mean(-1, keepdim=True)) * (variance(x) + 1e-5).pow(-0.5),
    "detached": lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(variance(x) + 1e-5).detach(),
}

RMS_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "divided by sqrt": lambda x: x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5),
    "times rsqrt": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
    "times rsqrt, product": lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5),
    "times power": lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-5) ** -0.5,
}


class Tokens(nn.Module):
    """(N, L, E) -> linear -> norm -> gain and shift -> linear."""

    def __init__(self, norm: Callable[[Tensor], Tensor], shift: bool = True) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(6, 8), nn.Linear(8, 4)
        self.gain, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8)) if shift else None
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.before(x)) * self.gain
        return self.after(F.gelu(x if self.shift is None else x + self.shift)).mean(dim=1)


class TokensByTorch(nn.Module):
    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        t, x = self.tokens, self.tokens.before(x)
        rms = t.shift is None
        x = F.rms_norm(x, (8,), t.gain, 1e-5) if rms else F.layer_norm(x, (8,), t.gain, t.shift, 1e-5)
        return t.after(F.gelu(x)).mean(dim=1)


@every_config
@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(kind, name) for kind, norms in (("layer", LAYER_NORMS), ("rms", RMS_NORMS)) for name in norms],
)
def test_norms_by_hand_equal_torchs(kind: str, name: str, config: Any) -> None:
    norm = {"layer": LAYER_NORMS, "rms": RMS_NORMS}[kind][name]
    network = case(lambda: Tokens(norm, shift=kind == "layer"), 3, 5, 6)
    twin = Case(TokensByTorch(network.model).eval(), network.x)
    explanation, expected = explain(network, config, 1), explain(twin, config, 1)
    assert_right(expected, twin)
    assert_right(explanation, network)
    assert_twins(explanation, expected)


def channels_first(net: Any, x: Tensor) -> Tensor:
    norm = net.m["norm"]
    return F.layer_norm(x.permute(0, 2, 3, 1), (4,), norm.weight, norm.bias).permute(0, 3, 1, 2)


NORMS: dict[str, tuple[Step, Step, dict[str, Callable[[], nn.Module]]]] = {
    "group": (
        lambda net, x: net.m["norm"](x),
        lambda net, x: standardised(x.unflatten(1, (2, 2)), (2, 3, 4)).flatten(1, 2) * weight_of(net) + bias_of(net),
        {"norm": lambda: nn.GroupNorm(2, 4)},
    ),
    "instance": (
        lambda net, x: net.m["norm"](x),
        lambda net, x: standardised(x, (2, 3)) * weight_of(net) + bias_of(net),
        {"norm": lambda: nn.InstanceNorm2d(4, affine=True)},
    ),
    "group, ReLU in place": (
        lambda net, x: F.relu(net.m["norm"](x), inplace=True),
        lambda net, x: F.relu(net.m["norm"](x)),
        {"norm": lambda: nn.GroupNorm(2, 4)},
    ),
    "layer, ReLU in place": (
        lambda net, x: net.m["norm"](x).relu_(),
        lambda net, x: F.relu(net.m["norm"](x)),
        {"norm": lambda: nn.LayerNorm(8)},
    ),
    "instance, not affine": (
        lambda net, x: net.m["norm"](x),
        lambda net, x: standardised(x, (2, 3)),
        {"norm": lambda: nn.InstanceNorm2d(4)},
    ),
    "layer over channels": (
        channels_first,
        lambda net, x: standardised(x, (1,)) * weight_of(net) + bias_of(net),
        {"norm": lambda: nn.LayerNorm(4)},
    ),
    "layer over everything": (
        lambda net, x: net.m["norm"](x),
        lambda net, x: standardised(x, (1, 2, 3)) * net.m["norm"].weight + net.m["norm"].bias,
        {"norm": lambda: nn.LayerNorm((4, 8, 8))},
    ),
    "local response": (
        lambda net, x: net.m["norm"](x),
        lambda net, x: x * response(x).detach(),
        {"norm": lambda: nn.LocalResponseNorm(3, alpha=0.5, k=2)},
    ),
    "unit length": (
        lambda net, x: F.normalize(x),
        lambda net, x: x / x.norm(dim=1, keepdim=True).detach(),
        {},
    ),
    "weight norm": (
        lambda net, x: net.m["conv"](x),
        lambda net, x: F.conv2d(x, net.m["conv"].weight, net.m["conv"].bias, padding=1),
        {"conv": lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))},
    ),
    "spectral norm": (
        lambda net, x: net.m["conv"](x),
        lambda net, x: F.conv2d(x, net.m["conv"].weight, net.m["conv"].bias, padding=1),
        {"conv": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1))},
    ),
    "weight norm, by hook": (
        lambda net, x: net.m["conv"](x),
        lambda net, x: F.conv2d(x, by_weight_norm(net.m["conv"]), net.m["conv"].bias, padding=1),
        {"conv": lambda: nn.utils.weight_norm(nn.Conv2d(4, 4, 3, padding=1))},
    ),
    "standardised weight": (
        lambda net, x: F.conv2d(x, standardised(net.m["conv"].weight, (1, 2, 3)), net.m["conv"].bias),
        lambda net, x: F.conv2d(x, standardised(net.m["conv"].weight, (1, 2, 3)).detach(), net.m["conv"].bias),
        {"conv": one_by_one},
    ),
}


def standardised(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """(x - mean) / std, the divisor held constant."""
    return (x - x.mean(dims, keepdim=True)) / (variance(x, dims) + 1e-5).sqrt().detach()


def weight_of(net: Any) -> Tensor:
    return net.m["norm"].weight[:, None, None]


def bias_of(net: Any) -> Tensor:
    return net.m["norm"].bias[:, None, None]


def by_weight_norm(conv: nn.Conv2d) -> Tensor:
    return conv.weight_g * conv.weight_v / conv.weight_v.flatten(1).norm(dim=1)[:, None, None, None]


def response(x: Tensor) -> Tensor:
    squares = F.pad(x.square(), (0, 0, 0, 0, 1, 1))
    return (2 + 0.5 / 3 * sum(squares[:, i : i + 4] for i in range(3))) ** -0.75


@every_config
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, config: Any) -> None:
    step, plain, modules = NORMS[name]
    network, twin = part(step, **modules), part(plain, **modules)
    before = fingerprint(network.model)
    explanation = explain(network, config, target=2)
    assert_right(explanation, network)
    assert_twins(explanation, explain(twin, config, target=2), rtol=1e-8)
    assert fingerprint(network.model)["state"] == before["state"]
    assert_samples_independent(network, config, 1e-9)


# What has no rule


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], batch_first: bool = True) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 6), nn.Linear(5, 3)
        self.rnn = kind(6, 5, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(x))
        out, _ = self.rnn(x if self.batch_first else x.transpose(0, 1))
        return self.after(out[:, -1] if self.batch_first else out[-1])


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Recurrent(nn.LSTM), "lstm"),
        (lambda: Recurrent(nn.GRU), "gru"),
        (lambda: Recurrent(nn.RNN), "rnn"),
        pytest.param(lambda: Recurrent(nn.LSTM, batch_first=False), "lstm"),
    ],
    ids=["lstm", "gru", "rnn", "lstm, batch second"],
)
def test_recurrent_networks_are_refused_by_name_or_booked(make: Callable[[], nn.Module], name: str) -> None:
    network = case(make, 3, 5, 4)
    with pytest.raises(EngineError, match=name) as caught:
        explain(network)
    assert "rnn" in str(caught.value)
    assert "on_unknown" in str(caught.value)
    explanation = explain(network, on_unknown="gradient")
    assert_right(explanation, network)
    assert explanation.absorbed["rnn"].abs().min() > 0
    assert_samples_independent(network, "epsilon", 1e-9, on_unknown="gradient")


UNKNOWN: dict[str, Step] = {
    "exp": lambda net, x: torch.exp(x),
    "exp, small": lambda net, x: torch.exp(x * 1e-3) - 1,
    "sin": lambda net, x: torch.sin(x),
    "erf": lambda net, x: x * torch.erf(x),
    "log": lambda net, x: torch.log(x.abs() + 1),
    "sqrt": lambda net, x: torch.sqrt(x.abs()),
    "logsumexp": lambda net, x: x + x.logsumexp(1, keepdim=True),
    "prod": lambda net, x: x.prod(dim=1, keepdim=True) + x,
    "var": lambda net, x: x + x.var(dim=1, keepdim=True),
    "reciprocal": lambda net, x: x.abs().add(1).reciprocal(),
    "cosh": lambda net, x: x.cosh(),
    "tan": lambda net, x: torch.tan(x * 0.1).abs_(),
}
UNKNOWN_NAMES = {"exp, small": "exp"}


@pytest.mark.parametrize("name", UNKNOWN)
def test_operations_without_a_rule_are_named_or_booked(name: str) -> None:
    network = part(UNKNOWN[name])
    with pytest.raises(EngineError, match=f"'{UNKNOWN_NAMES.get(name, name)}' in Part") as caught:
        explain(network)
    assert "\n" not in str(caught.value)
    assert_right(explain(network, on_unknown="gradient"), network)
    assert_samples_independent(network, "epsilon", 1e-9, on_unknown="gradient")


# Almost linear: the nearer to zero, the more so.
@pytest.mark.parametrize("size", [1e-2, 0.1])
def test_what_is_almost_linear_is_no_linear_operation(size: float) -> None:
    network = part(lambda net, x: torch.sin(x * size) / size)
    with pytest.raises(EngineError, match="'sin'"):
        explain(network)


class OwnSwish(torch.autograd.Function):
    """What memory-saving implementations of EfficientNet do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradients[0] * (s * (1 + x * (1 - s)))


class OwnScaling(torch.autograd.Function):
    """A linear function by a way of its own: nothing is lost if it is left to autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 2


@torch.jit.script
def scripted_swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def test_own_autograd_functions_that_are_linear_are_right() -> None:
    network, twin = part(lambda net, x: OwnScaling.apply(x)), part(lambda net, x: x * 2)
    assert_twins(explain(network, LRP0), explain(twin, LRP0))


@pytest.mark.parametrize(
    "step", [lambda net, x: OwnSwish.apply(x), lambda net, x: scripted_swish(x)], ids=["autograd function", "script"]
)
def test_what_cannot_be_intercepted_is_refused_by_name(step: Step) -> None:
    with pytest.raises(EngineError) as caught:
        explain(part(step))
    assert "this is a bug" not in str(caught.value)
    assert "Part" in str(caught.value)


def test_weights_computed_beforehand_are_constants() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.base = nn.Linear(4, 5), nn.Parameter(torch.randn(5, dtype=torch.float64))
            with torch.enable_grad():
                self.scale = self.base * 2

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * self.scale

    network = case(Computed, 3, 4)
    assert_right(explain(network, LRP0), network)


# timm


TIMM = {
    "convnext_atto_rms": 64,
    "vit_tiny_r_s16_p8_224": 224,
    "resnet18": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 224,
    "mobilenetv4_conv_small": 64,
    "efficientformer_l1": 224,
}
"""Model -> side of the pictures."""

MORE_OF_TIMM = {
    "beit_base_patch16_224": 224,
    "cait_xxs24_224": 224,
    "caformer_s18": 96,
    "coat_tiny": 224,
    "convit_tiny": 224,
    "crossvit_tiny_240": 240,
    "davit_tiny": 224,
    "eca_nfnet_l0": 96,
    "edgenext_xx_small": 96,
    "eva02_tiny_patch14_224": 224,
    "fastvit_t8": 128,
    "gcvit_xxtiny": 224,
    "halonet_h1": 256,
    "hrnet_w18_small": 96,
    "levit_128s": 224,
    "maxxvit_rmlp_nano_rw_256": 256,
    "mixer_s32_224": 224,
    "mobilevit_xxs": 128,
    "nf_regnet_b0": 96,
    "pit_ti_224": 224,
    "poolformer_s12": 96,
    "pvt_v2_b0": 96,
    "regnety_002": 96,
    "resnest14d": 96,
    "resnetv2_18": 96,
    "swinv2_cr_tiny_224": 224,
    "tresnet_m": 96,
    "twins_svt_small": 224,
    "visformer_tiny": 224,
    "volo_d1_224": 224,
    "xcit_nano_12_p16_224": 224,
}


def check_timm(name: str, side: int) -> None:
    timm = pytest.importorskip("timm", reason="other people's models: pip install timm")
    batch = inputs(8, 3, side, side, seed=1)
    model = build(lambda: timm.create_model(name, pretrained=False, num_classes=20).double(), batch)
    network = Case(model, inputs(2, 3, side, side))
    for config in ("cp-lrp", "attnlrp"):
        assert_right(explain(network, config), network)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    check_timm(name, TIMM[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_OF_TIMM)
def test_more_of_timm(name: str) -> None:
    check_timm(name, MORE_OF_TIMM[name])
