"""vae_fast.patch("diffusers"): the posterior's draws, KL and NLL are the library's own."""

import pytest
import torch

import vae_fast
from tests.patches.counting import Counting

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")

from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Posterior

CALLS = {
    "kl": lambda p, other, x: p.kl(),
    "kl to another": lambda p, other, x: p.kl(other),
    "nll": lambda p, other, x: p.nll(x),
}
FUSED = {"kl": "gaussian_kl", "kl to another": "gaussian_kl", "nll": "gaussian_nll"}


def parameters(layout, scale=3.0):
    torch.manual_seed(1)
    packed = [scale * torch.randn(3, 8, 5, 5) for _ in range(2)]
    packed[0].view(-1)[::31] *= 20  # beyond the bounds of logvar
    return [t.contiguous(memory_format=layout).requires_grad_() for t in packed]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("call", CALLS)
def test_values_and_gradients(layout, call):
    x = torch.randn(3, 4, 5, 5)
    upstream = torch.tensor([1.0, -2.0, 0.5])

    def value():
        packed = parameters(layout, 1.0 if call == "kl to another" else 3.0)
        found = CALLS[call](*map(Posterior, packed), x)
        found.backward(upstream)
        return [found.detach(), *(t.grad for t in packed if t.grad is not None)]

    expected = value()
    with vae_fast.patch("diffusers", noise="torch") as patch, Counting() as count:
        found = value()
    assert all(o.replaced for o in patch.report), str(patch)
    assert count[FUSED[call]] == 1, count
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_native_draws():
    for layout in (torch.contiguous_format, torch.channels_last):
        posterior = Posterior(parameters(layout)[0])
        with vae_fast.patch("diffusers"), Counting() as count:
            z = posterior.sample(torch.Generator().manual_seed(3))
            again = posterior.sample(torch.Generator().manual_seed(3))
            other = posterior.sample()
        assert count["reparameterize_keeping"] + count["reparameterize"] == 3, count
        assert z.is_contiguous(memory_format=layout)
        assert torch.equal(z, again)
        assert not torch.equal(z, other)
        z.sum().backward()
    eps = torch.zeros(1, 8, 200, 200)
    with vae_fast.patch("diffusers"):
        z = Posterior(eps).sample()
    assert abs(z.std() - 1) < 0.01


def test_draws_without_noise_and_with_several_generators_use_the_originals():
    packed = parameters(torch.contiguous_format)[0]
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    expected = Posterior(packed).sample(generators)
    with vae_fast.patch("diffusers"):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        assert torch.equal(Posterior(packed).sample(generators), expected)
        still = Posterior(packed, deterministic=True)
        assert torch.equal(still.sample(), still.mean)
        assert still.kl().tolist() == [0.0]
        assert Posterior(packed).nll(torch.zeros(3, 4, 5, 5), dims=[1, 2]).shape == (3, 5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_blocks_of_an_autoencoder(layout):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).to(memory_format=layout)  # fmt: skip
    x = torch.rand(2, 3, 16, 16).contiguous(memory_format=layout)

    def step():
        model.zero_grad()
        posterior = model.encode(x).latent_dist
        made = model.decode(posterior.mode()).sample
        (made.square().mean() + posterior.kl().mean()).backward()
        return [made.detach(), *(p.grad.clone() for p in model.parameters())]

    expected = step()
    with vae_fast.patch("diffusers", noise="torch"), Counting() as count:
        found = step()
    blocks = sum(type(m).__name__ == "ResnetBlock2D" for m in model.modules())
    # Two a block, one in the attention and one at the end of encoder and decoder, forward and backward.
    ours = sum(n for op, n in count.items() if op.startswith("group_norm"))
    assert ours == 4 * blocks + 8, count
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item() + 1e-7)
    seen = []
    watched = (
        model.encoder.down_blocks[0].resnets[0].norm1,
        model.encoder.mid_block.attentions[0].group_norm,
        model.encoder.conv_act,
        model.decoder.up_blocks[0].upsamplers[0].conv,
    )
    handles = [m.register_forward_hook(lambda m, *_: seen.append(m)) for m in watched]
    with vae_fast.patch("diffusers"):
        step()
    for handle in handles:
        handle.remove()
    assert seen == [*watched]  # hooks on what a fused op stands for are still called


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upsampling(layout):
    """A doubled image's 3x3 convolution is a transposed one: values, gradients, second derivatives."""
    from diffusers.models.upsampling import Upsample2D

    torch.manual_seed(0)
    for bias in (True, False):
        module = Upsample2D(5, use_conv=True, out_channels=7, bias=bias).to(memory_format=layout)
        x = torch.randn(2, 5, 6, 9).contiguous(memory_format=layout).requires_grad_()
        inputs = [x, *module.parameters()]

        def results(module=module, x=x, inputs=inputs):
            made = module(x)
            first = torch.autograd.grad(made.square().sum(), inputs, create_graph=True)
            second = torch.autograd.grad(first[0].square().sum(), inputs[:2])
            return [made, *first, *second]

        expected = results()
        with vae_fast.patch("diffusers"):
            with pytest.MonkeyPatch.context() as context:
                context.setattr(torch.nn.functional, "interpolate", None)  # nothing is doubled
                found = results()
            sized = module(x, output_size=(13, 17))
            half = module.double()(x.double())
        module.float()
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-5 * b.abs().max().item())
        assert found[0].stride() == expected[0].stride()
        # What it was not written for goes to the original.
        assert torch.equal(sized, module(x, output_size=(13, 17)))
        assert torch.equal(half, module.double()(x.double()))


def test_undo():
    before = Posterior.kl, Posterior.nll, Posterior.sample
    patch = vae_fast.patch("diffusers")
    assert Posterior.kl is not before[0]
    patch.undo()
    assert before == (Posterior.kl, Posterior.nll, Posterior.sample)
