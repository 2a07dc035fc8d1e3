import pytest
import torch

from actcache.analysis.predict.adamw_stack import StackedAdamW, uniform_weights


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_stack_steps_as_pytorchs_adamw_does_with_each_network_alone(scale):
    torch.manual_seed(0)
    lr, decay = torch.tensor([1e-3, 1e-2, 0.1]), torch.tensor([0.0, 0.01, 1.0])
    weights = torch.randn(3, 4, 5)
    inputs = torch.randn(3, 7, 5)

    def loss(w, x):
        return (x @ w.mT).tanh().square().sum()

    stack = weights.clone().requires_grad_()
    optimizer = StackedAdamW([stack], lr=lr, weight_decay=decay)
    for _ in range(20):
        loss(stack, inputs).backward()
        optimizer.step(scale=scale)
    alone = []
    for i in range(3):
        w = weights[i].clone().requires_grad_()
        single = torch.optim.AdamW([w], lr=float(lr[i]) * scale, weight_decay=float(decay[i]))
        for _ in range(20):
            single.zero_grad()
            loss(w, inputs[i]).backward()
            single.step()
        alone.append(w.detach())
    torch.testing.assert_close(stack.detach(), torch.stack(alone), rtol=1e-5, atol=1e-6)


def test_a_networks_first_weights_depend_on_its_seed_alone():
    both = uniform_weights([3, 4], (5, 6), bound=0.5, device="cpu")
    torch.testing.assert_close(
        both[1:], uniform_weights([4], (5, 6), bound=0.5, device="cpu"), rtol=0, atol=0
    )
    assert not torch.equal(both[0], both[1])
    assert 0.4 < float(both.abs().max()) <= 0.5
