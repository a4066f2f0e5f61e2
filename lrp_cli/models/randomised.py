"""Random weights that there is something to explain with."""

import torch
from torch import nn

CALIBRATION = 4
"""Pictures of noise that batch statistics are taken from."""


def enliven(network: nn.Module, size: tuple[int, int]) -> None:
    """Draw what was initialised to zero, and calibrate the batch statistics, of a network with random weights.

    As torchvision initialises its models, some heads are zero, so that every score is, and batch norms normalise by
    statistics that the activations do not have, so that these fade away or grow from layer to layer. The caller seeds.

    Args:
        network: changed in place; left in eval mode.
        size: height and width of the input.
    """
    for parameter in network.parameters():
        if parameter.dim() > 1 and not bool(parameter.any()):
            nn.init.trunc_normal_(parameter, std=0.02)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None  # the mean over all batches: here, of the one
            norm.train()
        with torch.no_grad():
            network(torch.randn(CALIBRATION, 3, *size))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    network.eval()
