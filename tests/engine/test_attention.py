"""Attention of every kind against a slow reference in relevance form, one neuron at a time, and against LXT."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import LRP0, LRP0_ATTNLRP, Case, assert_right, assert_samples_independent, assert_twins, build, inputs
from torch import Tensor, nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from lrp_cli.errors import EngineError
from lrp_cli.explainer import Explainer, Explanation

MODES = {"cp-lrp": LRP0, "attnlrp": LRP0_ATTNLRP}
EXACT = {"rtol": 1e-9, "atol": 1e-11}

both_modes = pytest.mark.parametrize("mode", MODES)


# The reference. Everything is for one sample and one head; relevance R, never a gradient, is handed from step to step.


def linear_relevance(x: Tensor, weight: Tensor, bias: Tensor | None, R: Tensor) -> tuple[Tensor, float]:
    """LRP-0, token by token and neuron by neuron; returns the relevance of x and what the bias absorbs."""
    R_x, absorbed = torch.zeros_like(x), 0.0
    for t, o in product(range(len(x)), range(len(weight))):
        b = 0.0 if bias is None else bias[o].item()
        z = sum((x[t, i] * weight[o, i]).item() for i in range(x.shape[1])) + b
        if z == 0:  # such as a key of nothing but padding: it has no relevance to hand on
            continue
        for i in range(x.shape[1]):
            R_x[t, i] += x[t, i] * weight[o, i] / z * R[t, o]
        absorbed += b / z * R[t, o].item()
    return R_x, absorbed


def product_relevance(a: Tensor, b: Tensor, R: Tensor, share_a: float, share_b: float) -> tuple[Tensor, Tensor]:
    """o_ij = sum_k a_ik b_kj: each term's part of R_ij, of which a share goes to either factor."""
    R_a, R_b = torch.zeros_like(a), torch.zeros_like(b)
    for i, j in product(range(a.shape[0]), range(b.shape[1])):
        o = sum((a[i, k] * b[k, j]).item() for k in range(a.shape[1]))
        if o == 0:
            continue
        for k in range(a.shape[1]):
            part = a[i, k] * b[k, j] / o * R[i, j]
            R_a[i, k] += share_a * part
            R_b[k, j] += share_b * part
    return R_a, R_b


def softmax_relevance(x: Tensor, R: Tensor) -> Tensor:
    """R_i = x_i (R_i - s_i sum_j R_j), Achtibat et al. 2024, proposition 3.1; x is a matrix of rows."""
    s, R_x = x.softmax(dim=1), torch.zeros_like(x)
    for row, i in product(range(x.shape[0]), range(x.shape[1])):
        if s[row, i] > 0:  # what is masked has no part in it
            R_x[row, i] = x[row, i] * (R[row, i] - s[row, i] * R[row].sum())
    return R_x


@dataclass
class Head:
    """Relevance of one head's query, key and value, and what was absorbed between them and the output."""

    query: Tensor
    key: Tensor
    value: Tensor
    absorbed: float


def attend(q: Tensor, k: Tensor, v: Tensor, addend: Tensor, scale: float = 1.0) -> Tensor:
    return (q @ k.T * scale + addend).softmax(dim=1) @ v


def head_relevance(
    mode: str, q: Tensor, k: Tensor, v: Tensor, R: Tensor, *, addend: Tensor, scale: float = 1.0
) -> Head:
    """Hand down R, shape (L, d), the relevance of softmax(q k^T scale + addend) v."""
    scores = q @ k.T * scale
    logits = scores + addend
    weights = logits.softmax(dim=1)
    if mode == "cp-lrp":
        _, R_v = product_relevance(weights, v, R, 0, 1)
        return Head(torch.zeros_like(q), torch.zeros_like(k), R_v, 0.0)
    R_weights, R_v = product_relevance(weights, v, R, 0.5, 0.5)
    R_logits = softmax_relevance(logits, R_weights)
    R_scores = torch.where(weights > 0, scores / logits * R_logits, 0.0)
    R_q, R_kT = product_relevance(q, k.T, R_scores, 0.5, 0.5)
    absorbed = R.sum() - R_q.sum() - R_kT.sum() - R_v.sum()
    return Head(R_q, R_kT.T, R_v, absorbed.item())


def heads_of(t: Tensor, heads: int) -> list[Tensor]:
    return list(t.chunk(heads, dim=1))


# nn.MultiheadAttention


Span = tuple[int, int | None]
"""From and to, as in a slice."""

ALL: Span = (0, None)


@dataclass(frozen=True)
class Multihead:
    """How a multi-head attention is built and called: on which tokens, of which features, with which mask."""

    query: Span = ALL
    key: Span = ALL
    value: Span = ALL
    key_features: Span = ALL
    value_features: Span = ALL
    bias: bool = True
    batch_first: bool = True
    need_weights: bool = False
    average_weights: bool = True
    float_mask: bool = False
    boolean_mask: bool = False
    mask_by_head: bool = False
    padding: bool = False
    float_padding: bool = False
    causal: bool = False
    tokens: int = 5
    width: int = 6
    heads: int = 2
    samples: int = 2

    def sizes(self) -> tuple[int, int, int, int]:
        """Number of queries and keys, features of keys and of values."""
        tokens, features = range(self.tokens), range(self.width)
        return (
            len(tokens[slice(*self.query)]),
            len(tokens[slice(*self.key)]),
            len(features[slice(*self.key_features)]),
            len(features[slice(*self.value_features)]),
        )

    def places(self) -> list[tuple[slice, slice]]:
        """Return the tokens and features that query, key and value are made of."""
        features = (ALL, self.key_features, self.value_features)
        tokens = (self.query, self.key, self.value)
        return [(slice(*t), slice(*f)) for t, f in zip(tokens, features, strict=True)]

    def masks(self) -> tuple[Tensor | None, Tensor | None]:
        """Return attention mask and padding mask, as MultiheadAttention takes them."""
        generator = torch.Generator().manual_seed(3)
        queries, keys, _, _ = self.sizes()
        shape = (self.samples * self.heads, queries, keys) if self.mask_by_head else (queries, keys)
        mask = padding = None
        if self.float_mask:
            mask = torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.boolean_mask:
            mask = torch.rand(shape, generator=generator) < 0.4
            mask[..., 0] = False  # no query without any key
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(queries, dtype=torch.float64)
        if self.padding:
            padding = torch.zeros(self.samples, keys, dtype=torch.bool)
            padding[0, -2:] = True
        if self.float_padding:
            padding = torch.randn(self.samples, keys, generator=generator, dtype=torch.float64)
        return mask, padding

    def addend(self, sample: int, head: int) -> Tensor:
        """Return what is added to the attention logits, shape (queries, keys)."""
        mask, padding = self.masks()
        total = torch.zeros(self.sizes()[:2], dtype=torch.float64)
        if mask is not None:
            mask = mask[sample * self.heads + head] if self.mask_by_head else mask
            total = total.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else total + mask
        if padding is not None:
            row = padding[sample]
            total = total.masked_fill(row, -torch.inf) if row.dtype == torch.bool else total + row
        return total


class MultiheadNet(nn.Module):
    """The attention's output is the network's: (N, L * E)."""

    def __init__(self, how: Multihead) -> None:
        super().__init__()
        _, _, kdim, vdim = how.sizes()
        self.how = how
        self.attention = nn.MultiheadAttention(
            how.width, how.heads, bias=how.bias, batch_first=how.batch_first, kdim=kdim, vdim=vdim
        )
        self.weights: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        how = self.how
        sources = [x[:, tokens, features] for tokens, features in how.places()]
        if how.query == how.key == how.value == ALL == how.key_features == how.value_features:
            sources = [x] * 3  # one and the same, which has a path of its own
        if not how.batch_first:
            # Cross-attention passes one tensor as key and value.
            turned = {id(source): source.transpose(0, 1) for source in sources}
            sources = [turned[id(source)] for source in sources]
        q, k, v = sources
        mask, padding = how.masks()
        out, weights = self.attention(
            q,
            k,
            v,
            attn_mask=mask,
            key_padding_mask=padding,
            need_weights=how.need_weights,
            average_attn_weights=how.average_weights,
            is_causal=how.causal,
        )
        self.weights = None if weights is None else weights.detach()
        return (out if how.batch_first else out.transpose(0, 1)).flatten(1)


def multihead_reference(net: MultiheadNet, x: Tensor, seed: Tensor, mode: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the relevance of x, and what out_proj, softmax and the input projections absorb of each sample."""
    how, attention = net.how, net.attention
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    else:
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    biases = attention.in_proj_bias.chunk(3) if how.bias else (None, None, None)
    relevance, absorbed = torch.zeros_like(x), {name: torch.zeros(len(x)) for name in ("out", "softmax", "in")}
    for n in range(len(x)):
        places = [(n, *place) for place in how.places()]
        sources = [x[place] for place in places]
        projected = [F.linear(s, w, b) for s, w, b in zip(sources, weights, biases, strict=True)]
        split = [heads_of(t, how.heads) for t in projected]
        scale = split[0][0].shape[1] ** -0.5
        joined = torch.cat([attend(*qkv, how.addend(n, h), scale) for h, qkv in enumerate(zip(*split, strict=True))], 1)
        out = F.linear(joined, attention.out_proj.weight, attention.out_proj.bias)
        R_out = out * seed[n].view_as(out)
        R_joined, absorbed["out"][n] = linear_relevance(
            joined, attention.out_proj.weight, attention.out_proj.bias, R_out
        )
        handed = [
            head_relevance(mode, *qkv, R, addend=how.addend(n, h), scale=scale)
            for h, (qkv, R) in enumerate(zip(zip(*split, strict=True), heads_of(R_joined, how.heads), strict=True))
        ]
        absorbed["softmax"][n] = sum(head.absorbed for head in handed)
        for which, place in enumerate(places):
            R = torch.cat([(head.query, head.key, head.value)[which] for head in handed], dim=1)
            R_source, taken = linear_relevance(sources[which], weights[which], biases[which], R)
            relevance[place] += R_source
            absorbed["in"][n] += taken
    return relevance, absorbed


MULTIHEADS = {
    "self": Multihead(),
    "self, batch second": Multihead(batch_first=False),
    "self, no bias": Multihead(bias=False),
    "weights asked for": Multihead(need_weights=True),
    "weights of each head, batch second": Multihead(need_weights=True, average_weights=False, batch_first=False),
    "float mask": Multihead(float_mask=True),
    "boolean mask": Multihead(boolean_mask=True, need_weights=True),
    "boolean mask, batch second": Multihead(boolean_mask=True, batch_first=False),
    "float mask for each head": Multihead(float_mask=True, mask_by_head=True),
    "boolean mask for each head": Multihead(boolean_mask=True, mask_by_head=True),
    "causal": Multihead(causal=True),
    "padding": Multihead(padding=True),
    "padding, batch second": Multihead(padding=True, batch_first=False, need_weights=True),
    "float padding": Multihead(float_padding=True),
    "padding and mask": Multihead(padding=True, boolean_mask=True),
    "padding and mask for each head": Multihead(padding=True, boolean_mask=True, mask_by_head=True),
    "cross": Multihead(query=(0, 2), key=(2, 5), value=(2, 5)),
    "cross, batch second": Multihead(query=(0, 2), key=(1, 5), value=(1, 5), batch_first=False),
    "cross, padding": Multihead(query=(0, 2), key=(2, 5), value=(2, 5), padding=True),
    "three sources": Multihead(query=(0, 2), key=(0, 3), value=(2, 5), need_weights=True),
    "own key and value widths": Multihead(key_features=(0, 4), value_features=(1, 6)),
    "own widths, cross, batch second": Multihead(
        query=(0, 2),
        key=(2, 5),
        value=(2, 5),
        key_features=(0, 4),
        value_features=(1, 6),
        batch_first=False,
    ),
    "one head, one query": Multihead(query=(0, 1), heads=1),
}


def explain(net: nn.Module, x: Tensor, seed: Tensor, mode: str) -> Explanation:
    explanation = Explainer(net, MODES[mode]).explain(x, target=seed)
    assert_right(explanation, Case(net, x))
    return explanation


def random_seed(net: nn.Module, x: Tensor) -> Tensor:
    """Return a seed of any sign that reaches every output."""
    with torch.no_grad():
        outputs = net(x).shape
    return inputs(*outputs, seed=9)


@both_modes
@pytest.mark.parametrize("name", MULTIHEADS)
def test_multihead_attention(name: str, mode: str) -> None:
    how = MULTIHEADS[name]
    net = build(lambda: MultiheadNet(how).double())
    x = inputs(how.samples, how.tokens, how.width)
    seed = random_seed(net, x)
    explanation = explain(net, x, seed, mode)
    relevance, absorbed = multihead_reference(net, x, seed, mode)
    torch.testing.assert_close(explanation.relevance, relevance.detach(), **EXACT)

    booked = dict(explanation.absorbed)
    inside = sum(
        (booked.pop(key) for key in list(booked) if key.endswith("_proj") and "out" not in key), torch.zeros(2)
    )
    nothing = torch.zeros(2)
    for mine, theirs in (
        (absorbed["out"], booked.pop("attention.out_proj", nothing)),
        (absorbed["softmax"], booked.pop("attention", nothing)),
        (absorbed["in"], inside),
    ):
        torch.testing.assert_close(theirs.double(), mine.double(), rtol=1e-5, atol=1e-5)
    assert not booked


@pytest.mark.parametrize("name", [name for name, how in MULTIHEADS.items() if how.need_weights])
def test_attention_weights_that_are_asked_for_are_torchs_own(name: str) -> None:
    how = MULTIHEADS[name]
    net = build(lambda: MultiheadNet(how).double())
    x = inputs(how.samples, how.tokens, how.width)
    net(x)
    expected = net.weights
    Explainer(net, LRP0).explain(x, target=0)
    torch.testing.assert_close(net.weights, expected, rtol=1e-12, atol=1e-12)


class AsModule(nn.Module):
    """A function of the input as a network; its outputs are the scores."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x).flatten(1)


UNUSUAL: dict[str, dict[str, Any]] = {
    "bias_k and bias_v": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
}


@both_modes
@pytest.mark.parametrize("name", UNUSUAL)
def test_rare_options_are_refused_by_name(name: str, mode: str) -> None:
    attention = build(lambda: nn.MultiheadAttention(6, 2, batch_first=True, **UNUSUAL[name]).double())
    network = Case(AsModule(lambda x: attention(x, x, x)[0]).eval(), inputs(2, 4, 6))
    with pytest.raises(EngineError, match="multi_head_attention_forward"):
        Explainer(network.model, MODES[mode]).explain(network.x)


@both_modes
@pytest.mark.parametrize("name", UNUSUAL)
def test_rare_options_can_be_booked(name: str, mode: str) -> None:
    attention = build(lambda: nn.MultiheadAttention(6, 2, batch_first=True, **UNUSUAL[name]).double())
    network = Case(AsModule(lambda x: attention(x, x, x)[0]).eval(), inputs(2, 4, 6))
    assert_right(Explainer(network.model, MODES[mode], on_unknown="gradient").explain(network.x), network)


# Scaled dot products


def three(x: Tensor, heads: int = 2) -> Iterator[Tensor]:
    """Yield query, key and value, each (N, heads, L, d), out of x (N, L, 3 * heads * d)."""
    for t in x.chunk(3, dim=2):
        yield t.unflatten(2, (heads, -1)).transpose(1, 2)


def scores_reference(
    x: Tensor, seed: Tensor, mode: str, *, addend: Callable[[int, int], Tensor], scale: float, heads: int = 2
) -> Tensor:
    """Return the relevance of x where softmax(q k^T scale + addend) v, (N, heads, L, d), is the output."""
    relevance = torch.zeros_like(x)
    for n in range(len(x)):
        parts = [t.chunk(heads, dim=1) for t in x[n].chunk(3, dim=1)]
        seeds = seed[n].view(heads, x.shape[1], -1)
        rows = []
        for h in range(heads):
            qkv = [part[h] for part in parts]
            R = attend(*qkv, addend(n, h), scale) * seeds[h]
            rows.append(head_relevance(mode, *qkv, R, addend=addend(n, h), scale=scale))
        joined = [torch.cat([getattr(row, part) for row in rows], dim=1) for part in ("query", "key", "value")]
        relevance[n] = torch.cat(joined, dim=1)
    return relevance


TOKENS, FEATURES = 4, 3
SCALE = FEATURES**-0.5
NONE = torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
FLOAT = torch.randn(2, 2, TOKENS, TOKENS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
ALLOWED = torch.rand(TOKENS, TOKENS, generator=torch.Generator().manual_seed(5)) < 0.6
ALLOWED.fill_diagonal_(True)
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def forbidden(allowed: Tensor) -> Tensor:
    return torch.zeros_like(NONE).masked_fill(~allowed, -torch.inf)


def no_addend(n: int, h: int) -> Tensor:
    return NONE


def floats(n: int, h: int) -> Tensor:
    return FLOAT[n, h]


def allowed(n: int, h: int) -> Tensor:
    return forbidden(ALLOWED)


def causal(n: int, h: int) -> Tensor:
    return forbidden(CAUSAL)


sdpa = F.scaled_dot_product_attention


def mask_for(x: Tensor) -> Tensor:
    return FLOAT[: len(x)]


def by_einsum(x: Tensor) -> Tensor:
    q, k, v = three(x)
    weights = torch.einsum("nhid,nhjd->nhij", q, k).mul(SCALE).softmax(-1)
    return torch.einsum("nhij,nhjd->nhid", weights, v)


def by_einsum_with_ellipsis(x: Tensor) -> Tensor:
    q, k, v = three(x)
    weights = F.softmax(torch.einsum("... i d, ... j d -> ... i j", q * SCALE, k), dim=-1)
    return torch.einsum("... i j, ... j d -> ... i d", weights, v)


def by_operator(x: Tensor) -> Tensor:
    q, k, v = three(x)
    return torch.softmax(q @ k.mT * SCALE, dim=-1) @ v


def by_division(x: Tensor) -> Tensor:
    q, k, v = three(x)
    weights = F.dropout(nn.Softmax(dim=-1)((q @ k.transpose(-2, -1)) / FEATURES**0.5), 0.1, training=False)
    return weights.contiguous() @ v.contiguous()


def by_matmul(x: Tensor) -> Tensor:
    q, k, v = three(x)
    return torch.matmul(torch.matmul(q * SCALE, k.transpose(2, 3)).softmax(dim=3), v)


def by_matmul_method(x: Tensor) -> Tensor:
    q, k, v = three(x)
    return (q * SCALE).matmul(k.permute(0, 1, 3, 2)).softmax(dim=-1, dtype=torch.float64).matmul(v)


def by_bmm(x: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in three(x))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(SCALE).softmax(-1), v).unflatten(0, (-1, 2))


def by_transposed_product(x: Tensor) -> Tensor:
    q, k, v = three(x)
    return (v.mT @ (k @ q.mT * SCALE).softmax(dim=-2)).mT


def by_loop_over_heads(x: Tensor) -> Tensor:
    out = [F.softmax(q @ k.mT * SCALE, -1) @ v for q, k, v in zip(*(t.unbind(1) for t in three(x)), strict=True)]
    return torch.stack(out, dim=1)


def with_added_mask(x: Tensor) -> Tensor:
    q, k, v = three(x)
    return (q @ k.mT * SCALE + mask_for(x)).softmax(-1) @ v


def with_added_infinities(x: Tensor) -> Tensor:
    q, k, v = three(x)
    return (q @ k.mT * SCALE + forbidden(ALLOWED)).softmax(-1) @ v


def with_masked_fill(x: Tensor) -> Tensor:
    q, k, v = three(x)
    return (q @ k.mT * SCALE).masked_fill(~ALLOWED, float("-inf")).softmax(-1) @ v


def with_masked_fill_in_place(x: Tensor) -> Tensor:
    q, k, v = three(x)
    logits = q @ k.mT * SCALE
    logits.masked_fill_(~CAUSAL, float("-inf"))
    return logits.softmax(-1) @ v


def with_where(x: Tensor) -> Tensor:
    q, k, v = three(x)
    return torch.where(CAUSAL, q @ k.mT * SCALE, -torch.inf).softmax(-1) @ v


Spelling = tuple[Callable[[Tensor], Tensor], Callable[[int, int], Tensor], float]

SPELLINGS: dict[str, Spelling] = {
    "fused": (lambda x: sdpa(*three(x)), no_addend, SCALE),
    "fused, scale": (lambda x: sdpa(*three(x), scale=0.3), no_addend, 0.3),
    "fused, float mask": (lambda x: sdpa(*three(x), attn_mask=mask_for(x)), floats, SCALE),
    "fused, float mask by position, scale": (lambda x: sdpa(*three(x), mask_for(x), scale=0.3), floats, 0.3),
    "fused, boolean mask": (lambda x: sdpa(*three(x), attn_mask=ALLOWED), allowed, SCALE),
    "fused, causal": (lambda x: sdpa(*three(x), is_causal=True), causal, SCALE),
    "fused, causal by position": (lambda x: sdpa(*three(x), None, 0.0, True), causal, SCALE),
    **{
        f.__name__.replace("_", " "): (f, no_addend, SCALE)
        for f in (
            by_operator,
            by_division,
            by_matmul,
            by_matmul_method,
            by_bmm,
            by_einsum,
            by_einsum_with_ellipsis,
            by_transposed_product,
            by_loop_over_heads,
        )
    },
    "with added mask": (with_added_mask, floats, SCALE),
    "with added infinities": (with_added_infinities, allowed, SCALE),
    "with masked fill": (with_masked_fill, allowed, SCALE),
    "with masked fill in place": (with_masked_fill_in_place, causal, SCALE),
    "with where": (with_where, causal, SCALE),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [pytest.param(name, mode) for name, mode in product(SPELLINGS, MODES)],
)
def test_scaled_dot_products_however_written(name: str, mode: str) -> None:
    function, addend, scale = SPELLINGS[name]
    net, x = AsModule(function).eval(), inputs(2, TOKENS, 3 * 2 * FEATURES)
    seed = random_seed(net, x)
    expected = scores_reference(x, seed, mode, addend=addend, scale=scale)
    torch.testing.assert_close(explain(net, x, seed, mode).relevance, expected, **EXACT)


@both_modes
def test_keys_and_values_shared_between_queries(mode: str) -> None:
    """Grouped queries: two heads of queries for one of keys and values."""

    def grouped(x: Tensor) -> Tensor:
        q, k, v = x.split((2 * FEATURES, FEATURES, FEATURES), dim=2)
        q, k, v = (t.unflatten(2, (-1, FEATURES)).transpose(1, 2) for t in (q, k, v))
        return sdpa(q, k, v, enable_gqa=True)

    def repeated(x: Tensor) -> Tensor:
        q, k, v = x.split((2 * FEATURES, FEATURES, FEATURES), dim=2)
        return sdpa(*three(torch.cat([q, k, k, v, v], dim=2)))

    x = inputs(2, TOKENS, 4 * FEATURES)
    seed = inputs(2, 2 * TOKENS * FEATURES, seed=9)
    assert_twins(*(explain(AsModule(f).eval(), x, seed, mode) for f in (grouped, repeated)))


def test_the_two_modes_differ() -> None:
    """Under CP-LRP no relevance reaches query and key, and none is absorbed; under AttnLRP both happen."""
    net, x = AsModule(by_operator).eval(), inputs(2, TOKENS, 3 * 2 * FEATURES)
    seed = random_seed(net, x)
    cp, attn = (explain(net, x, seed, mode) for mode in MODES)
    assert (cp.relevance[..., : 4 * FEATURES] == 0).all()
    assert (cp.absorbed_sum.abs() < 1e-12).all()
    assert (attn.relevance[..., : 4 * FEATURES].abs() > 0).all()
    assert (attn.absorbed_sum.abs() > 1e-3).all()
    values = slice(4 * FEATURES, None)
    torch.testing.assert_close(attn.relevance[..., values], cp.relevance[..., values] / 2, **EXACT)


@both_modes
def test_softmax_of_a_constant_row_is_a_mean(mode: str) -> None:
    """With equal keys all weights are equal: the values get their mean, and under AttnLRP q and k nothing."""
    x = inputs(1, TOKENS, 3 * 2 * FEATURES)
    x[..., 2 * FEATURES : 4 * FEATURES] = 0.7
    net = AsModule(by_operator).eval()
    seed = random_seed(net, x)
    explanation = explain(net, x, seed, mode)
    per_token = x[..., 4 * FEATURES :] * seed.view(1, 2, TOKENS, FEATURES).mean(2).flatten(1)
    share = {"cp-lrp": 1.0, "attnlrp": 0.5}[mode]
    torch.testing.assert_close(explanation.relevance[..., 4 * FEATURES :], share * per_token, **EXACT)
    assert (explanation.relevance[..., : 2 * FEATURES].abs() < 1e-12).all()


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize(
    ("given", "dtype"), [(torch.float64, None), (torch.float64, torch.float64), (torch.float32, torch.float64)]
)
def test_what_a_softmax_absorbs(dim: int, offset: float, given: torch.dtype, dtype: torch.dtype | None) -> None:
    """Its relevance less that of its input, x times the gradient, whatever is added to all of a distribution."""
    x, weights = (inputs(2, 4, 6) + offset).to(given), inputs(4, 6, seed=2).to(given)
    x[0, 0, 0] -= 1e3  # no weight is left there

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (torch.softmax(x, dim, dtype=dtype).to(x) * weights).flatten(1)

    seed = random_seed(Net(), x).to(given)
    explanation = explain(Net().eval(), x, seed, "attnlrp")
    leaf = x.clone().requires_grad_()
    y = Net()(leaf)
    (gradient,) = torch.autograd.grad((y * seed).sum(), leaf)
    close = {"rtol": 1e-4, "atol": 1e-4} if given == torch.float32 else EXACT
    torch.testing.assert_close(explanation.relevance, x * gradient, **close)
    absorbed = (y * seed).double().sum(dim=1).detach() - (x * gradient).double().sum(dim=(1, 2))
    torch.testing.assert_close(explanation.absorbed_sum.double(), absorbed, **close)


# Windows: torchvision's Swin and MaxViT


def position_bias(table: Tensor, size: int, head: int) -> Tensor:
    """Look up a table of (2 size - 1)^2 relative positions for every pair in a window of size x size."""
    span, rows = 2 * size - 1, []
    for i, j in product(range(size * size), repeat=2):
        down, right = i // size - j // size, i % size - j % size
        rows.append(table[(down + size - 1) * span + right + size - 1, head])
    return torch.stack(rows).view(size * size, size * size)


def windows(size: int, window: int, shift: int) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """Yield the positions in each window of the shifted, padded map, and which pairs may see each other."""
    padded = -(-size // window) * window

    def region(i: int) -> int:
        return 0 if i < padded - window else 1 if i < padded - shift else 2

    for top, left in product(range(0, padded, window), repeat=2):
        shifted = [(top + i, left + j) for i, j in product(range(window), repeat=2)]
        labels = [(region(i), region(j)) if shift else (0, 0) for i, j in shifted]
        far = torch.tensor([[a != b for b in labels] for a in labels])
        yield [((i + shift) % padded, (j + shift) % padded) for i, j in shifted], far


def window_reference(attention: ShiftedWindowAttention, x: Tensor, seed: Tensor, mode: str) -> Tensor:
    """Return the relevance of x, (N, H, W, C), for a shifted window attention, cosine (version 2) or not."""
    window, shift, heads = attention.window_size[0], attention.shift_size[0], attention.num_heads
    samples, size, _, channels = x.shape
    cosine = isinstance(attention, ShiftedWindowAttentionV2)
    biases = attention.qkv.bias.chunk(3)
    if cosine:
        biases = (biases[0], torch.zeros_like(biases[1]), biases[2])
        table = 16 * attention.cpb_mlp(attention.relative_coords_table).view(-1, heads).sigmoid()
        factors = attention.logit_scale.clamp(max=torch.log(torch.tensor(100.0)).item()).exp().flatten().tolist()
    else:
        table = attention.relative_position_bias_table
        factors = [(channels // heads) ** -0.5] * heads
    weights = attention.qkv.weight.chunk(3)
    padded = -(-size // window) * window
    relevance = torch.zeros_like(x)
    for n, (places, far) in product(range(samples), windows(size, window, shift)):
        full = torch.zeros(padded, padded, channels, dtype=x.dtype)
        full[:size, :size] = x[n]
        tokens = torch.stack([full[place] for place in places])
        split = [heads_of(F.linear(tokens, w, b), heads) for w, b in zip(weights, biases, strict=True)]
        rows, outputs = [], []
        for h, (q, k, v) in enumerate(zip(*split, strict=True)):
            if cosine:  # divided by norms, which are constants: the relevance of q is that of q / |q|
                q, k = (t / t.norm(dim=1, keepdim=True).clamp_min(1e-12) for t in (q, k))  # noqa: PLW2901
            addend = position_bias(table, window, h).masked_fill(torch.zeros_like(far), 0) - 100.0 * far
            rows.append((q, k, v, addend))
            outputs.append(attend(q, k, v, addend, factors[h]))
        joined = torch.cat(outputs, dim=1)
        out = F.linear(joined, attention.proj.weight, attention.proj.bias)
        seeds = torch.zeros(padded, padded, channels, dtype=x.dtype)
        seeds[:size, :size] = seed[n].view(size, size, channels)
        R_out = out * torch.stack([seeds[place] for place in places])
        R_joined, _ = linear_relevance(joined, attention.proj.weight, attention.proj.bias, R_out)
        handed = [
            head_relevance(mode, q, k, v, R, addend=addend, scale=factors[h])
            for h, ((q, k, v, addend), R) in enumerate(zip(rows, heads_of(R_joined, heads), strict=True))
        ]
        R_tokens = torch.zeros_like(tokens)
        for which, part in enumerate(("query", "key", "value")):
            R = torch.cat([getattr(head, part) for head in handed], dim=1)
            R_tokens += linear_relevance(tokens, weights[which], biases[which], R)[0]
        for (i, j), R in zip(places, R_tokens, strict=True):
            if i < size and j < size:
                relevance[n, i, j] += R
    return relevance


class Flattened(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).flatten(1)


@both_modes
@pytest.mark.parametrize("size", [4, 5], ids=["whole windows", "padded"])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
def test_shifted_window_attention(kind: type[ShiftedWindowAttention], shift: int, size: int, mode: str) -> None:
    net = build(lambda: Flattened(kind(4, [2, 2], [shift, shift], 2)).double())
    x = inputs(2, size, size, 4)
    seed = random_seed(net, x)
    expected = window_reference(net.inner, x, seed, mode).detach()
    assert (expected != 0).all()
    # The masks of Swin are -100, not infinite: exp(-100) of the relevance crosses over, and is divided by.
    torch.testing.assert_close(explain(net, x, seed, mode).relevance, expected, rtol=1e-7, atol=1e-9)


@both_modes
def test_relative_positional_attention_of_maxvit(mode: str) -> None:
    net = build(lambda: Flattened(RelativePositionalMultiHeadAttention(6, 3, 4)).double())
    attention, x = net.inner, inputs(2, 2, 4, 6)
    seed = random_seed(net, x)
    relevance = torch.zeros_like(x)
    weights, biases = attention.to_qkv.weight.chunk(3), attention.to_qkv.bias.chunk(3)
    for n, group in product(range(2), range(2)):
        tokens = x[n, group]
        split = [heads_of(F.linear(tokens, w, b), 2) for w, b in zip(weights, biases, strict=True)]
        addends = [position_bias(attention.relative_position_bias_table, 2, h) for h in range(2)]
        joined = torch.cat(
            [attend(q, k, v, addends[h], 6**-0.5) for h, (q, k, v) in enumerate(zip(*split, strict=True))], 1
        )
        R_out = F.linear(joined, attention.merge.weight, attention.merge.bias) * seed.view_as(x)[n, group]
        R_joined, _ = linear_relevance(joined, attention.merge.weight, attention.merge.bias, R_out)
        handed = [
            head_relevance(mode, q, k, v, R, addend=addends[h], scale=6**-0.5)
            for h, ((q, k, v), R) in enumerate(zip(zip(*split, strict=True), R_joined.chunk(2, dim=1), strict=True))
        ]
        for which, part in enumerate(("query", "key", "value")):
            R = torch.cat([getattr(head, part) for head in handed], dim=1)
            relevance[n, group] += linear_relevance(tokens, weights[which], biases[which], R)[0]
    torch.testing.assert_close(explain(net, x, seed, mode).relevance, relevance.detach(), **EXACT)


# Samples


@both_modes
@pytest.mark.parametrize("name", ["self", "self, batch second", "padding and mask", "cross, batch second"])
def test_a_samples_relevance_is_its_own(name: str, mode: str) -> None:
    how = Multihead(**{**vars(MULTIHEADS[name]), "padding": False})
    net = build(lambda: MultiheadNet(how).double())
    assert_samples_independent(Case(net, inputs(3, how.tokens, how.width)), MODES[mode], 1e-9)


@both_modes
def test_a_samples_relevance_is_its_own_in_windows(mode: str) -> None:
    net = build(lambda: Flattened(ShiftedWindowAttention(4, [2, 2], [1, 1], 2)).double())
    assert_samples_independent(Case(net, inputs(3, 5, 5, 4)), MODES[mode], 1e-9)


# LXT


def test_attnlrp_of_lxt() -> None:
    """LXT's explicit functions, whose backward passes are relevance itself."""
    functional = pytest.importorskip("lxt.explicit.functional", reason="compares with LXT: pip install lxt")
    attention = build(lambda: nn.MultiheadAttention(6, 2, batch_first=True).double())
    x = inputs(2, 5, 6)
    net = AsModule(lambda x: attention(x, x, x, need_weights=False)[0]).eval()
    seed = random_seed(net, x)

    entering = x.clone().requires_grad_()
    tiny = 1e-14
    q, k, v = (
        functional.linear_epsilon(entering, w, b, tiny).unflatten(2, (2, 3)).transpose(1, 2)
        for w, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
    )
    # To scale by a constant leaves relevance alone, so it is done where LXT sees it not: in the weights.
    logits = functional.matmul(q, k.transpose(-2, -1), False, tiny)
    scaled = _PassOn.apply(logits, 3**-0.5)
    joined = functional.matmul(functional.softmax(scaled, -1), v, False, tiny).transpose(1, 2).flatten(2)
    out = functional.linear_epsilon(joined, attention.out_proj.weight, attention.out_proj.bias, tiny)
    (expected,) = torch.autograd.grad(out, entering, out.detach() * seed.view_as(out))
    torch.testing.assert_close(explain(net, x, seed, "attnlrp").relevance, expected, rtol=1e-7, atol=1e-9)


class _PassOn(torch.autograd.Function):
    """A factor that hands relevance on as it comes."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, factor: float) -> Tensor:
        return t * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


# Runs apart, for LXT replaces methods of torch's classes; its package imports libraries for language models that this
# recipe does without, so only the recipe's own modules are loaded.
_LXT_RECIPE = """
import sys, types
from importlib.util import find_spec
from pathlib import Path
import torch
root = Path(find_spec("lxt").submodule_search_locations[0])
for name, folder in (("lxt.efficient", root / "efficient"), ("lxt.efficient.models", root / "efficient" / "models")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
from lxt.efficient.models.vit_torch import cp_LRP
sys.path.insert(0, sys.argv[1])
from test_attention import small_vit
model, x = small_vit()
before = model(x)
for target, patch in cp_LRP.items():
    assert patch(target)
x.requires_grad_()
logits = model(x)
torch.testing.assert_close(logits, before)
(gradient,) = torch.autograd.grad(logits[:, 3].sum(), x)
torch.save((logits.detach(), (x * gradient).detach()), sys.argv[2])
"""


def small_vit() -> tuple[nn.Module, Tensor]:
    """Return torchvision's vision transformer with two blocks and a batch for it, in float64."""
    from torchvision.models import VisionTransformer

    network = build(
        lambda: VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10
        ).double()
    )
    return network, inputs(2, 3, 32, 32)


def test_cp_lrp_of_lxts_recipe_for_torchvisions_vit(tmp_path: Path) -> None:
    if importlib.util.find_spec("lxt") is None:
        pytest.skip("compares with LXT: pip install lxt")
    saved = tmp_path / "lxt.pt"
    command = [sys.executable, "-c", _LXT_RECIPE, str(Path(__file__).parent), str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    logits, expected = torch.load(saved, weights_only=True)
    model, x = small_vit()
    explanation = Explainer(model, LRP0).explain(x, target=3)
    assert_right(explanation, Case(model, x))
    torch.testing.assert_close(explanation.logits, logits, rtol=1e-12, atol=1e-12)
    # LXT's y / (x + 1e-10) in GELU is not exactly y / x.
    torch.testing.assert_close(explanation.relevance, expected, rtol=1e-6, atol=1e-8)
