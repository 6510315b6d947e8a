"""Stable Diffusion's autoencoders, read from diffusers' files, give diffusers' values."""

import json

import pytest
import torch
from torch import nn

from vae_fast.hub import load_stable_diffusion
from vae_fast.networks.tiles import in_tiles


def saved(tmp_path, **options):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.manual_seed(4)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4, latent_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=16, scaling_factor=0.25, **options,
    ).eval()  # fmt: skip
    for parameter in model.parameters():  # the norms' too, which begin at 1 and 0
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("quant", [True, False])
def test_value_for_value(tmp_path, quant):
    theirs = saved(tmp_path, use_quant_conv=quant, use_post_quant_conv=quant)
    ours = load_stable_diffusion(tmp_path)
    assert (ours.input_shape, ours.latent_shape) == ((3, 16, 16), (3, 4, 4))
    assert (ours.scaling_factor, ours.shift_factor) == (0.25, 0.0)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = theirs.encode(2 * x - 1).latent_dist
        q = ours.posterior_maps(x)
        torch.testing.assert_close(q.mu, expected.mean, rtol=1e-4, atol=1e-4)
        bounded = q.logvar.clamp(-30, 20)  # as diffusers' posterior does
        torch.testing.assert_close(bounded, expected.logvar, rtol=1e-4, atol=1e-4)
        z = torch.randn(2, 3, 4, 4)
        made = theirs.decode(z).sample
        torch.testing.assert_close(2 * ours.decode_maps(z) - 1, made, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.decode_tiled(z, tile=4), ours.decode_maps(z))
        other = torch.randn(1, 3, 6, 9)  # another size
        made = theirs.decode(other).sample
        torch.testing.assert_close(2 * ours.decode_maps(other) - 1, made, rtol=1e-4, atol=1e-4)
        assert ours.decode_tiled(other, tile=4).shape == made.shape
        # In bytes, the engine's way.
        assert torch.isfinite(ours.loss((255 * x).to(torch.uint8)).loss)


def test_attention_as_older_files_have_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    saved(tmp_path)
    expected = load_stable_diffusion(tmp_path).state_dict()
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in safetensors.load_file(path).items():
        for new, was in old.items():
            if f".{new}." in name and name.endswith("weight"):
                value = value[:, :, None, None]
            name = name.replace(f".{new}.", f".{was}.")
        renamed[name] = value.contiguous()
    safetensors.save_file(renamed, path)
    for name, value in load_stable_diffusion(tmp_path).state_dict().items():
        assert torch.equal(value, expected[name])


def test_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json and no diffusion_pytorch_model"):
        load_stable_diffusion(tmp_path)
    saved(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for change, message in (
        ({"act_fn": "gelu"}, "act_fn gelu"),
        ({"layers_per_block": 3}, "the weights have no encoder.down_blocks.0.resnets.2"),
        ({"layers_per_block": 1}, "tensors that an autoencoder of this configuration lacks"),
        ({"use_quant_conv": False}, "the weights have 2 tensors.*quant_conv"),
        ({"sample_size": 18}, "18 x 18 can't be halved 2 times: .* multiple of 4"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            load_stable_diffusion(tmp_path)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_of_a_local_decoder_are_the_whole(overlap):
    def decode(maps):
        return torch.nn.functional.interpolate(maps, scale_factor=2.0).sin()

    for size in ((4, 4), (5, 9), (16, 7), (1, 30)):
        maps = torch.randn(2, 3, *size, requires_grad=True)
        whole, tiled = decode(maps), in_tiles(decode, maps, 4, overlap)
        torch.testing.assert_close(tiled, whole)
        (a,), (b,) = (torch.autograd.grad(t.square().sum(), maps) for t in (tiled, whole))
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"overlap in \[0, 0.5\], got 4 and 0.6"):
        in_tiles(decode, maps, 4, 0.6)
