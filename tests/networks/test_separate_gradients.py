"""One forward pass; copies of its output with gradients for parameters alone, and for each input."""

import pytest
import torch
from torch import nn

from vae_fast.networks.separate_gradients import separate_gradients


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).double()
    last = nn.Linear(5, 2).double()
    calls = []

    def run(x):
        calls.append(x)
        h = body(x)
        return h, last(h)

    return run, [*body.parameters(), *last.parameters()], calls


def test_each_copy_has_its_own_gradients():
    run, parameters, calls = network()
    x, y = (
        torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3).requires_grad_() for _ in "xy"
    )
    of_parameters, of_x, of_y = separate_gradients(run, parameters, x, y)
    assert len(calls) == 1
    loss = (
        of_parameters[1].square().sum()
        + of_x[0].sin().sum()
        + (of_y[0] * of_y[1].sum(1, True)).sum()
    )
    wanted = run(x)
    for of, want in zip((of_parameters, of_x, of_y), (wanted,) * 3, strict=True):
        torch.testing.assert_close(of, want)
    found = torch.autograd.grad(loss, [x, y, *parameters], retain_graph=True)
    torch.testing.assert_close(found[0], torch.autograd.grad(run(x)[0].sin().sum(), x)[0])
    h, out = run(y)
    torch.testing.assert_close(found[1], torch.autograd.grad((h * out.sum(1, True)).sum(), y)[0])
    own = torch.autograd.grad(run(x.detach())[1].square().sum(), parameters)
    torch.testing.assert_close(found[2:], own)
    # A loss of one copy leaves no gradient elsewhere.
    alone = torch.autograd.grad(of_x[0].sum(), [x, y, *parameters], allow_unused=True)
    assert alone[0].any() and all(g is None or not g.any() for g in alone[1:])


def test_constants_no_gradients_and_second_derivatives():
    run, parameters, calls = network()
    x = torch.ones(2, 3, dtype=torch.float64)
    first, second = separate_gradients(run, parameters, x)
    assert first[0].requires_grad and not second[0].requires_grad
    z = x.clone().requires_grad_()
    first, second = separate_gradients(run, [], z)
    assert not first[1].requires_grad and second[1].requires_grad
    with torch.no_grad():
        first, second = separate_gradients(run, parameters, x)
    assert first[1] is second[1] and not first[1].requires_grad and len(calls) == 3

    second = separate_gradients(run, parameters, z)[1]
    slope = torch.autograd.grad(second[1].square().sum(), z, create_graph=True)[0]
    torch.testing.assert_close(slope, torch.autograd.grad(run(z)[1].square().sum(), z)[0])
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
