"""Which operation is handled how: by name, for all the spellings of an operation at once."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lrp_cli.engine.operations import activations, attention, constants, linear, normalisation, pooling, products

Handler = Callable[..., Any]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ACTIVATIONS = _names(
    """
    relu6 gelu silu hardswish elu selu celu mish softplus softsign tanhshrink hardtanh clamp logsigmoid log_sigmoid
    hardshrink
    softshrink square
    """
)
"""Elementwise functions that relevance passes unchanged."""

HANDLERS: dict[str, Handler] = {
    "linear": linear.linear,
    "addmm": linear.addmm,
    "batch_norm": linear.batch_norm,
    **{f"conv{d}d": partial(linear.convolution, dimensions=d) for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": partial(linear.convolution, dimensions=d, transposed=True) for d in (1, 2, 3)},
    **dict.fromkeys(ACTIVATIONS, activations.identity_rule),
    **dict.fromkeys(["sigmoid", "hardsigmoid", "tanh"], activations.gate),
    "relu": activations.rectify,
    "max_pool2d": pooling.max_pool,
    "softmax": products.softmax,
    **dict.fromkeys(["mul", "bmm", "mm", "einsum"], products.bilinear),
    **dict.fromkeys(["matmul", "rmatmul"], products.matmul),
    **dict.fromkeys(["div", "rdiv"], products.divide),
    "pow": products.power,
    "layer_norm": normalisation.layer_norm,
    "rms_norm": normalisation.rms_norm,
    "group_norm": normalisation.group_norm,
    "instance_norm": normalisation.instance_norm,
    "normalize": normalisation.normalize,
    "local_response_norm": normalisation.local_response_norm,
    **dict.fromkeys(["var_mean", "std_mean"], normalisation.with_mean),
    **dict.fromkeys(["rsqrt", "reciprocal"], products.scale),
    "glu": products.glu,
    "log_softmax": products.log_softmax,
    "scaled_dot_product_attention": attention.scaled_dot_product_attention,
    "multi_head_attention_forward": attention.multi_head_attention,
    "add": constants.add,
    "sub": constants.subtract,
    "rsub": constants.subtract_reflected,
    **dict.fromkeys(["cat", "stack", "hstack", "vstack", "dstack"], constants.join),
    "where": constants.where,
    "masked_fill": constants.masked_fill,
    "pad": constants.pad,
}
"""Operations with a handler of their own."""

# Shapes.
_SHAPES = _names(
    """
    view reshape flatten unflatten permute transpose t contiguous squeeze unsqueeze expand expand_as repeat tile
    repeat_interleave chunk tensor_split split split_with_sizes hsplit vsplit unbind getitem select narrow
    index_select gather take_along_dim roll flip fliplr flipud rot90 clone to float double half bfloat16 type
    type_as view_as reshape_as movedim diagonal unfold fold pixel_shuffle pixel_unshuffle channel_shuffle as_strided
    broadcast_to atleast_1d atleast_2d atleast_3d squeeze_copy identity alias cpu cuda
    """
)
# Sums and means.
_SUMS = _names(
    """
    sum mean nansum cumsum neg positive interpolate upsample avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d lp_pool2d
    """
)
# Maxima: the winner takes all.
_MAXIMA = _names(
    """
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin
    max_pool2d_with_indices
    """
)
# Piecewise linear through zero, and dropout, which is the identity in eval mode.
_PIECEWISE_LINEAR = _names(
    """
    relu leaky_relu prelu rrelu abs dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout
    feature_alpha_dropout
    """
)
HOMOGENEOUS = _SHAPES | _SUMS | _MAXIMA | _PIECEWISE_LINEAR
"""Operations with f(x) = f'(x) x, which plain autograd propagates relevance through in the gradient form."""

LIKE_ANOTHER = frozenset({"expand_as", "view_as", "reshape_as", "type_as", "to"})
"""Operations that read nothing but shape or type of a second tensor."""

QUESTIONS = _names("dim size stride numel nelement is_floating_point is_complex is_contiguous storage_offset")
"""Operations that ask how a tensor is made, and read no values."""

REORDERING = frozenset({"transpose", "permute", "movedim", "t", "get T", "get mT", "get H", "get mH"})
"""Operations that put dimensions in another order."""

KEEPS_GATES = _names(
    """
    view reshape flatten unflatten permute transpose t contiguous squeeze unsqueeze expand expand_as repeat chunk
    split unbind getitem select narrow roll clone to float type_as view_as reshape_as movedim broadcast_to dropout
    mean repeat_interleave get T get mT interpolate
    """
)
"""Operations after which a gate is still a gate."""

NON_NEGATIVE = _names("relu relu6 sigmoid hardsigmoid softmax abs square")
"""Operations with no negative value in their result."""

KEEPS_SIGNS = (
    (_SHAPES - _names("unfold fold as_strided gather take_along_dim type"))
    | (_MAXIMA - _names("amax amin"))
    | _names("dropout dropout1d dropout2d dropout3d feature_dropout sum mean add mul cat stack")
    | _names("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")
)
"""Operations with no negative value in their result if there is none in any operand."""

SAVES_NOTHING = (
    _SHAPES
    | _names("linear addmm batch_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
    | _names("sum mean neg positive add sub rsub cat stack hstack vstack dstack where")
    | _names("dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout")
)
"""Operations after which autograd needs neither operands nor result for the way back, or whose nodes see to it."""

CONVENTIONS = {
    **dict.fromkeys(ACTIVATIONS, "identity"),
    **dict.fromkeys(["sigmoid", "hardsigmoid", "tanh"], "identity"),
    **dict.fromkeys(["mul", "bmm", "mm", "einsum", "matmul", "rmatmul"], "gate constant, else half each"),
    **dict.fromkeys(["div", "rdiv"], "denominator constant"),
    **dict.fromkeys(["layer_norm", "rms_norm", "group_norm", "instance_norm", "normalize"], "scale constant"),
    "local_response_norm": "scale constant",
    "softmax": "Taylor",
    **dict.fromkeys(["add", "sub", "rsub", "cat", "stack", "hstack", "vstack", "dstack"], "in proportion"),
    **dict.fromkeys(["where", "masked_fill", "pad"], "in proportion"),
    **dict.fromkeys(["pow", "square"], "identity"),
    **dict.fromkeys(["rsqrt", "reciprocal"], "scale"),
    **dict.fromkeys(["var_mean", "std_mean"], "linear in the mean"),
    "glu": "gate constant",
    "log_softmax": "gradient",
    **dict.fromkeys(HOMOGENEOUS, "linear"),
    **dict.fromkeys(_MAXIMA, "winner takes all"),
}
"""How operations without a configurable rule hand on relevance, in a few words."""
