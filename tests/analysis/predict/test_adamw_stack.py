import torch

from actcache.analysis.predict.adamw_stack import FusedAdam, StackedAdamW, uniform_weights


def test_a_stack_steps_as_pytorchs_adamw_does_with_each_network_alone():
    torch.manual_seed(0)
    lr, decay = torch.tensor([1e-3, 1e-2, 0.1]), torch.tensor([0.0, 0.01, 1.0])
    weights = torch.randn(3, 4, 5)
    inputs = torch.randn(3, 7, 5)

    def loss(w, x):
        return (x @ w.mT).tanh().square().sum()

    flat = weights.flatten().clone()
    lr_of_weight, decay_of_weight = (x.repeat_interleave(4 * 5) for x in (lr, decay))
    optimizer = StackedAdamW(flat, lr=lr_of_weight, weight_decay=decay_of_weight)
    for _ in range(20):
        stack = flat.view(3, 4, 5).clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(stack, inputs), stack)
        optimizer.step(gradient.flatten())
    alone = []
    for i in range(3):
        w = weights[i].clone().requires_grad_()
        single = torch.optim.AdamW([w], lr=float(lr[i]), weight_decay=float(decay[i]))
        for _ in range(20):
            single.zero_grad()
            loss(w, inputs[i]).backward()
            single.step()
        alone.append(w.detach())
    torch.testing.assert_close(flat.view(3, 4, 5), torch.stack(alone), rtol=1e-5, atol=1e-6)


def test_fused_adam_steps_as_pytorchs_adam_does():
    torch.manual_seed(0)
    weights = [torch.randn(3, 4, 5), torch.randn(3, 4)]
    gradients = [torch.empty_like(tensor) for tensor in weights]
    alone = [tensor.clone().requires_grad_() for tensor in weights]
    pytorch = torch.optim.Adam(alone, lr=1.0, fused=True)
    fused = FusedAdam(weights)

    for rate in (0.1, 0.03, 0.3):
        for gradient, tensor in zip(gradients, alone, strict=True):
            tensor.grad = gradient.normal_().clone()
        pytorch.param_groups[0]["lr"] = rate
        pytorch.step()
        fused.step(gradients, rate=rate)

    for weight, tensor in zip(weights, alone, strict=True):
        torch.testing.assert_close(weight, tensor.detach(), rtol=0, atol=0)


def test_a_networks_first_weights_depend_on_its_seed_alone():
    both = uniform_weights([3, 4], (5, 6), bound=0.5, device="cpu")
    torch.testing.assert_close(
        both[1:], uniform_weights([4], (5, 6), bound=0.5, device="cpu"), rtol=0, atol=0
    )
    assert not torch.equal(both[0], both[1])
    assert 0.4 < float(both.abs().max()) <= 0.5
