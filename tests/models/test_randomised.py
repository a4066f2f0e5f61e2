import torch

from lrp_cli.models import load_model


def test_random_weights_give_scores_to_explain() -> None:
    """As torchvision initialises them, these have a head of zeros, and activations that fade away."""
    for name in ("vit_b_32", "efficientnet_b0"):
        model = load_model(name, "random")
        size = model.preprocessing.input_size or (224, 224)
        with torch.no_grad():
            logits = model.network(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)))
        assert logits.std() > 1e-3
        assert not any(module.training for module in model.network.modules())


def test_random_weights_are_the_same_for_the_same_seed_only() -> None:
    first, again, other = (load_model("mobilenet_v3_small", "random", seed=seed) for seed in (0, 0, 1))
    states = [model.network.state_dict() for model in (first, again, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())
