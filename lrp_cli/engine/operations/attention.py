"""Softmax attention, fused: scaled dot products and multi-head attention.

With ``O = softmax(Q K^T scale + mask) V``:

CP-LRP (Ali et al. 2022): the attention weights are constant, all the relevance goes to V.

AttnLRP (Achtibat et al. 2024, section 3.3): a product of two matrices shares out its relevance half and half, and
softmax follows its Taylor expansion, which in gradient form is its gradient. On the way to V one product is passed,
hence 1/2 of the gradient; to Q and K two, hence 1/4. The offset of the expansion is booked.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrp_cli.engine.books import NORMALISATION
from lrp_cli.engine.naming import arguments
from lrp_cli.engine.operations.linear import linear
from lrp_cli.engine.operations.products import Scaled
from lrp_cli.engine.operations.unknown import booked, unknown
from lrp_cli.engine.run import Run
from lrp_cli.engine.tracking import tagged

_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_MHA = (
    "query",
    "key",
    "value",
    "embed_dim_to_check",
    "num_heads",
    "in_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
    "add_zero_attn",
    "dropout_p",
    "out_proj_weight",
    "out_proj_bias",
    "training",
    "key_padding_mask",
    "need_weights",
    "attn_mask",
    "use_separate_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "static_k",
    "static_v",
    "average_attn_weights",
    "is_causal",
)


def scaled_dot_product_attention(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.scaled_dot_product_attention``, by the run's choice of CP-LRP or AttnLRP."""
    a = arguments(_SDPA, args, kwargs)
    query, key, value = a.pop("query"), a.pop("key"), a.pop("value")
    if a.get("dropout_p"):
        return unknown(run, function, args, kwargs)
    if run.attention == "cp-lrp":
        mask = a.pop("attn_mask", None)
        mask = mask.detach() if mask is not None else None
        return function(query.detach(), key.detach(), value, attn_mask=mask, **a)

    def halved(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
        shared: Tensor = function(_scaled(run, q, 0.25), _scaled(run, k, 0.25), _scaled(run, v, 0.5), **rest)
        return shared

    return booked(run, halved, (query, key, value), a, NORMALISATION)


def _scaled(run: Run, t: Tensor, factor: float) -> Tensor:
    scaled: Tensor = Scaled.apply(t, factor) if run.carries(t) else t
    return scaled


def multi_head_attention(run: Run, function: Any, args: Any, kwargs: Any) -> Any:
    """``F.multi_head_attention_forward``: its projections are linear layers, ``NAME.in_proj`` and ``NAME.out_proj``.

    Inputs have the shape (L, N, E), the batch second.
    """
    a = arguments(_MHA, args, kwargs)
    extras = ("bias_k", "bias_v", "static_k", "static_v")
    batched = a["query"].dim() == 3
    if not batched or a["add_zero_attn"] or any(a.get(name) is not None for name in extras):
        return unknown(run, function, args, kwargs)
    query, key, value = _projected(run, a)
    length, samples, width = query.shape
    heads = a["num_heads"]

    def per_head(t: Tensor) -> Tensor:  # (L, N, E) -> (N, heads, L, E / heads)
        return t.reshape(t.shape[0], samples, heads, width // heads).permute(1, 2, 0, 3)

    mask = _mask(a, per_head(query), key.shape[0])
    attended = scaled_dot_product_attention(
        run, F.scaled_dot_product_attention, (per_head(query), per_head(key), per_head(value)), {"attn_mask": mask}
    )
    joined = attended.transpose(1, 2).reshape(samples, length, width)
    out = linear(run, F.linear, (joined, a["out_proj_weight"], a["out_proj_bias"]), {}, suffix=".out_proj")
    weights = _weights(query, key, per_head, mask, a) if a.get("need_weights", True) else None
    output = out.transpose(0, 1)
    tagged(output, run).batch_dim = 1
    return output, weights


def _projected(run: Run, a: dict[str, Any]) -> list[Tensor]:
    """Return the projected query, key and value, each (L, N, E)."""
    query, key, value = a["query"], a["key"], a["value"]
    bias = a.get("in_proj_bias")

    def project(t: Tensor, weight: Tensor, bias: Tensor | None, suffix: str) -> Tensor:
        # The batch goes first, as the books want it.
        if not run.carries(t):
            return F.linear(t, weight, bias)
        projected: Tensor = linear(run, F.linear, (t.transpose(0, 1), weight, bias), {}, suffix=suffix)
        tagged(projected, run).note_use()
        return projected.transpose(0, 1)

    if a.get("use_separate_proj_weight"):
        weights = [a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"]]
    elif query is key and key is value:
        return list(project(query, a["in_proj_weight"], bias, ".in_proj").chunk(3, dim=-1))
    else:
        weights = list(a["in_proj_weight"].chunk(3))
    biases = [None] * 3 if bias is None else list(bias.chunk(3))
    names = (".q_proj", ".k_proj", ".v_proj")
    return [project(*four) for four in zip((query, key, value), weights, biases, names, strict=True)]


def _mask(a: dict[str, Any], query: Tensor, keys: int) -> Tensor | None:
    """Return attention and padding masks as one additive mask (N, heads, L, S), or None."""
    samples, heads, length, _ = query.shape
    mask = a.get("attn_mask")
    additive = None
    if mask is not None:
        additive = _additive(mask, query)
        additive = additive.view(samples, heads, length, keys) if mask.dim() == 3 else additive
    padding = a.get("key_padding_mask")
    if padding is not None:
        padded = _additive(padding, query).view(samples, 1, 1, keys)
        additive = padded if additive is None else additive + padded
    return additive


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.detach().to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _weights(query: Tensor, key: Tensor, per_head: Any, mask: Tensor | None, a: dict[str, Any]) -> Tensor:
    """Return the attention weights that the caller asked to see; no relevance flows through them."""
    q, k = per_head(query).detach(), per_head(key).detach()
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    weights: Tensor = (logits if mask is None else logits + mask).softmax(dim=-1)
    return weights.mean(dim=1) if a.get("average_attn_weights", True) else weights
