"""What is measured: gradient times input, lrp's presets, and the same rules in other libraries, each on one batch."""

import copy
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

Method = Callable[[], object]

PRESETS = ["epsilon", "epsilon-plus", "epsilon-plus-flat", "epsilon-gamma-box", "epsilon-alpha2-beta1-flat"]
ATTENTION_PRESETS = ["attnlrp", "cp-lrp"]
TRANSFORMERS = {"swin_t", "vit_b_16"}
BOUNDS = ((-2.2, -2.1, -1.9), (2.3, 2.5, 2.7))
TOP = 5
WARM = 8
"""After so many explanations of one kind of input lrp does what it does from then on, as :func:`_lrp` sets it up."""


def network(name: str) -> nn.Module:
    """Return a network of torchvision with random weights, in eval mode, its batch statistics calibrated."""
    from torchvision import models

    torch.manual_seed(0)
    net = models.get_model(name, weights=None)
    for parameter in net.parameters():
        if not parameter.any():  # zero-initialised heads and norms would hand on no relevance
            nn.init.normal_(parameter, std=0.02)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = None
        net.train()
        with torch.no_grad():
            net(torch.randn(4, 3, 224, 224))
    return net.eval().requires_grad_(False)


def methods(name: str, net: nn.Module, x: Tensor, *, apart: bool = True) -> dict[str, Method]:
    """Return every method that can be run on a network: name -> a call that explains the batch ``x`` once.

    ``apart`` gives other libraries copies of the network: some leave it changed where they fail.
    """
    copied = copy.deepcopy if apart else lambda net: net
    target = net(x[:1]).argmax(dim=1).expand(len(x))
    found: dict[str, Method] = {"gradient x input": lambda: gradient_times_input(net, x, target)}
    found |= _lrp(name, net, x, target)
    if find_spec("zennit"):
        found |= _zennit(copied(net), x, target)
    if find_spec("captum"):
        found |= _captum(copied(net), x, target)
    if find_spec("autolrp"):
        found |= _autolrp(copied(net), x, target)
    return found


def gradient_times_input(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of each sample's target score, times the input."""
    x = x.clone().requires_grad_()
    score = net(x).gather(1, target[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, x)
    return x.detach() * gradient


def _lrp(name: str, net: nn.Module, x: Tensor, target: Tensor) -> dict[str, Method]:
    from lrp_cli import Explainer
    from lrp_cli.engine import library

    library.AFTER = 1  # later explanations are measured: there is no need to wait until it pays to prepare for them
    found: dict[str, Method] = {}
    presets = PRESETS + (ATTENTION_PRESETS if name in TRANSFORMERS else [])
    for preset in presets:
        explainer = Explainer(net, preset, bounds=BOUNDS)
        found[f"lrp {preset}"] = lambda explainer=explainer: explainer.explain(x, target)
    several = Explainer(net, "epsilon-plus-flat", bounds=BOUNDS)

    def top() -> None:
        forward = several.forward(x)
        best = forward.logits.topk(TOP, dim=1).indices
        for rank in range(TOP):
            forward.explain(best[:, rank], keep=rank + 1 < TOP)

    found[f"lrp epsilon-plus-flat, {TOP} targets"] = top
    return found


def _zennit(net: nn.Module, x: Tensor, target: Tensor) -> dict[str, Method]:
    from zennit import composites
    from zennit.attribution import Gradient
    from zennit.torchvision import ResNetCanonizer, SequentialMergeBatchNorm, VGGCanonizer

    kind = type(net).__name__
    canonizers = [{"ResNet": ResNetCanonizer, "VGG": VGGCanonizer}.get(kind, SequentialMergeBatchNorm)()]
    low, high = (torch.tensor(end).view(1, 3, 1, 1).to(x.device) for end in BOUNDS)
    made = {
        "epsilon-plus": composites.EpsilonPlus(canonizers=canonizers),
        "epsilon-plus-flat": composites.EpsilonPlusFlat(canonizers=canonizers),
        "epsilon-gamma-box": composites.EpsilonGammaBox(low=low, high=high, canonizers=canonizers),
        "epsilon-alpha2-beta1-flat": composites.EpsilonAlpha2Beta1Flat(canonizers=canonizers),
    }
    one_hot = torch.nn.functional.one_hot(target, 1000).float()

    def explain(composite: object) -> object:
        with Gradient(model=net, composite=composite) as attributor:
            return attributor(x.clone(), one_hot)

    return {f"zennit {name}": lambda composite=composite: explain(composite) for name, composite in made.items()}


def _captum(net: nn.Module, x: Tensor, target: Tensor) -> dict[str, Method]:
    from captum.attr import LRP

    return {"captum epsilon": lambda: LRP(net).attribute(x.clone(), target=target)}


def _autolrp(net: nn.Module, x: Tensor, target: Tensor) -> dict[str, Method]:
    import autolrp

    def explain() -> Tensor:
        wrapped = autolrp.tensor(x.clone())
        net(wrapped).gather(1, target[:, None]).sum().lrp()
        relevance: Tensor = wrapped.relevance
        return relevance

    return {"autolrp epsilon": explain}
