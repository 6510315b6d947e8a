"""Quantisers: the papers' formulas in float64, vector-quantize-pytorch's numbers, and collapse."""

import math

import pytest
import torch
import torch.nn.functional as F

from vae_fast.joined import Ranks, batch_joined_by
from vae_fast.models import build, make_quantizer
from vae_fast.models.quantize import FSQ, LFQ, VQ, perplexity


def vectors(m=40, d=6, seed=1, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(m, d, dtype=torch.float64, generator=generator)


def plain(dim=6, **options):
    torch.manual_seed(0)
    given = {"size": 9, "kmeans": 0, "dead_below": 0.0, "decay": 0.8, **options}
    made = VQ(dim, **given).double()
    with torch.no_grad():
        made.codes.copy_(torch.randn(made.codes.shape, dtype=torch.float64))
        if made.cosine:
            made.codes.copy_(F.normalize(made.codes, dim=-1))
        if made.follows:
            made.sums.copy_(made.codes)
    return made


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_vq_by_the_papers_formulas(update):
    """Codes, the loss of equation 3, both gradients, and the running means of appendix A.1."""
    q, z = plain(update=update), vectors().requires_grad_()
    codes = q.codes.detach().clone()
    distance = (z[:, None] - codes[0]).square().sum(-1)
    index = distance.argmin(1)
    weight = vectors(seed=2)
    out = q(z)
    assert torch.equal(out.codes, index[:, None])
    torch.testing.assert_close(out.z, codes[0, index])
    torch.testing.assert_close(q.lookup(out.codes), q.codes[0, index])
    off = (z - codes[0, index]).square().sum(1)
    torch.testing.assert_close(out.loss, (0.25 if update == "ema" else 1.25) * off)
    ((out.z * weight).sum() + out.loss.sum()).backward()
    torch.testing.assert_close(z.grad, (weight + 0.5 * (z - codes[0, index])).detach())
    if update == "gradient":
        wanted = torch.zeros_like(codes[0]).index_add_(0, index, 2 * (codes[0, index] - z).detach())
        torch.testing.assert_close(q.codes.grad[0], wanted)
        assert torch.equal(q.codes, codes)
        return
    uses = torch.bincount(index, minlength=9).double()
    counts = 0.8 + 0.2 * uses
    sums = 0.8 * codes[0] + 0.2 * torch.zeros_like(codes[0]).index_add_(0, index, z.detach())
    total = counts.sum()
    smooth = (counts + 1e-5) / (total + 9e-5) * total
    torch.testing.assert_close(q.counts[0], counts)
    torch.testing.assert_close(q.codes[0], sums / smooth[:, None])


def test_the_rotation_trick_by_matrices():
    q, z = plain(rotation=True), vectors().requires_grad_()
    out, weight = q(z), vectors(seed=2)
    (out.z * weight).sum().backward()
    found = plain().codes[0, out.codes[:, 0]]
    torch.testing.assert_close(out.z, found)
    for row, to, w, gradient in zip(z.detach(), found, weight, z.grad, strict=True):
        a, b = row / row.norm(), to / to.norm()
        r = (a + b) / (a + b).norm()
        eye = torch.eye(6, dtype=torch.float64)
        turn = to.norm() / row.norm() * (eye - 2 * r.outer(r) + 2 * b.outer(a))
        torch.testing.assert_close(turn @ row, to)
        torch.testing.assert_close(gradient, turn.t() @ w)


def test_heads_groups_and_layers():
    """A head is a codebook of its own on a part of the vector; layers take what the ones before left."""
    z = vectors()
    heads = plain(heads=2).eval()
    out = heads(z)
    for h, part in enumerate(z.split(3, 1)):
        distance = (part[:, None] - heads.codes[h]).square().sum(-1)
        assert torch.equal(out.codes[:, h], distance.argmin(1))
    torch.testing.assert_close(heads.lookup(out.codes), out.z)
    shared = plain(heads=2, shared=True)
    out = shared(z)
    assert shared.codes.shape == (1, 9, 3) and out.codes.shape == (40, 2)
    torch.testing.assert_close(shared.counts.sum(), torch.tensor(0.8 * 9 + 0.2 * 80).double())

    torch.manual_seed(0)
    layers = make_quantizer("rvq", 6, layers=3, size=9, kmeans=0).double().eval()
    rest, total = z.clone().requires_grad_(), 0.0
    out = layers(rest)
    left = z
    for i, layer in enumerate(layers.layers):
        found = layer(left)
        assert torch.equal(found.codes[:, 0], out.codes[:, i])
        left, total = left - found.z, total + found.z
    torch.testing.assert_close(out.z, total)
    torch.testing.assert_close(layers.lookup(out.codes), total)
    out.z.sum().backward()  # once, however many layers there are
    torch.testing.assert_close(rest.grad, torch.ones_like(z))

    groups = make_quantizer("lfq", 6, groups=2).double()
    out = groups(z)
    assert groups.sizes == (8, 8) and out.codes.shape == (40, 2)
    torch.testing.assert_close(groups.lookup(out.codes).double(), out.z)


def test_fsq_by_the_papers_code():
    levels = (7, 5, 4, 2)
    z, q = vectors(200, 4, scale=2.0).requires_grad_(), FSQ(4, levels=levels)
    out = q(z)
    for i, n in enumerate(levels):
        half, offset = (n - 1) * 1.001 / 2, 0.5 * (n % 2 == 0)
        bounded = torch.tanh(z[:, i] + math.atanh(offset / half)) * half - offset
        torch.testing.assert_close(out.z[:, i], bounded.round() / (n // 2))
        assert len(out.z[:, i].unique()) == n
    torch.testing.assert_close(q.lookup(out.codes).double(), out.z.detach())
    assert out.codes.max() < 7 * 5 * 4 * 2 and len(out.codes.unique()) > 150 * 0.5
    assert not out.loss.any()
    everything = torch.arange(280)[:, None]  # every code has a vector
    inside = torch.atanh(q.lookup(everything)[:, 0].double() * 0.999 * 3 / 3.003)
    assert inside.isfinite().all()


def test_lfq_entropies_by_all_codes():
    """Over all 2^d codes one by one; the sum over bits is exact for one sample and a bound for many."""
    d, z = 5, vectors(30, 5, scale=0.4).requires_grad_()
    q = LFQ(d, entropy=0.3, diversity=0.7, commitment=0.25, temperature=0.8)
    codes = torch.arange(32)[:, None]
    book = q.lookup(codes).double()
    p = (2 * z @ book.t() / 0.8).softmax(1)
    each = -(p * p.log()).sum(1)
    mean = p.mean(0)
    batch = -(mean * mean.log()).sum()
    chosen = book[p.argmax(1)]
    wanted = 0.25 * (z - chosen).square().sum(1) + 0.3 * (each - 0.7 * batch)
    out = q(z)
    torch.testing.assert_close(out.z, chosen)
    assert torch.equal(out.codes[:, 0], p.argmax(1))
    torch.testing.assert_close(out.loss, wanted)
    gradients = [torch.autograd.grad(t.mean(), z, retain_graph=True)[0] for t in (out.loss, wanted)]
    torch.testing.assert_close(*gradients)
    bits = LFQ(d, entropy=1.0, commitment=0.0, diversity=1.0, temperature=0.8, batch_entropy="bits")
    bound = each - bits(z).loss
    assert (bound >= batch - 1e-9).all()

    def halves(i):  # as on two ranks: each rank's part of the gradient
        own = z.detach().clone()[i].requires_grad_()
        other = LFQ(d, temperature=0.8)
        joint = p.detach().mean(0).view(4, 8)
        with batch_joined_by(Ranks(mean=lambda mean: joint.clone())):
            found = other(own)
        return own, found.loss.mean()

    parts = [halves(slice(0, 15)), halves(slice(15, 30))]
    whole = LFQ(d, temperature=0.8)(z).loss.mean()
    torch.testing.assert_close(sum(value for _, value in parts) / 2, whole)
    (sum(value for _, value in parts) / 2).backward()
    joined = torch.cat([own.grad for own, _ in parts])
    torch.testing.assert_close(joined, torch.autograd.grad(whole, z)[0])


def test_dead_codes_come_back_and_kmeans_starts_where_data_are():
    """Codes that lie far from all data are used: from the second batch on, and from the first one."""
    torch.manual_seed(0)
    z = 5 + 0.1 * torch.randn(256, 4)
    stuck = VQ(4, size=16, kmeans=0, dead_below=0.0, decay=0.5)
    revived = VQ(4, size=16, kmeans=0, dead_below=0.5, decay=0.5)
    started = VQ(4, size=16, dead_below=0.0)
    uses = []
    for q in (stuck, revived, started):
        for _ in range(12):
            q(z)
        q.eval()
        uses.append(perplexity(torch.bincount(q(z).codes[:, 0], minlength=16).float()).item())
    assert uses[0] < 3 and uses[1] > 8 and uses[2] > 12
    assert bool(started.started)
    again = VQ(4, size=16)
    again.load_state_dict(started.state_dict())
    before = again.codes.clone()
    again(z[:8].contiguous() + 50)  # does not start again
    assert (again.codes - before).abs().max() < 30


def test_two_ranks_follow_as_one():
    """Each rank follows the sums over both."""
    z = vectors()
    whole, half = plain(), plain()
    whole(z)
    parts = []

    def total(part):
        parts.append(part.clone())
        return part

    with batch_joined_by(Ranks(mean=lambda m: m, sum=total)):
        plain()(z[:25])
    theirs = list(parts)
    with batch_joined_by(Ranks(mean=lambda m: m, sum=lambda part: part.add_(theirs.pop(0)))):
        half(z[25:])
    torch.testing.assert_close(half.codes, whole.codes)
    torch.testing.assert_close(half.counts, whole.counts)


def test_refusals():
    with pytest.raises(ValueError, match="heads must divide the vectors"):
        VQ(7, heads=2)
    with pytest.raises(ValueError, match="update must be one of ema, gradient"):
        VQ(4, update="adam")
    with pytest.raises(ValueError, match="for each dimension"):
        FSQ(3, levels=(8, 8))
    with pytest.raises(ValueError, match="quantizer must be one of vq, rvq, fsq, lfq"):
        make_quantizer("pq", 4)
    with pytest.raises(ValueError, match=r"must be \(M, 4\)"):
        VQ(4)(torch.zeros(3, 5))


@pytest.mark.parametrize("name", ["vq", "rvq", "fsq", "lfq"])
def test_a_vq_vae_of_each_learns(name):
    """Maps of codes of small images; its codes decode to what it reconstructs."""
    torch.manual_seed(0)
    options = {"quantizer_options": {"size": 16}} if name in ("vq", "rvq") else {}
    if name == "lfq":
        options = {"code_dim": 5}
    sizes = {"channels": 8, "multipliers": [1, 2], "groups": 2}
    model = build(
        "vq-vae", (1, 8, 8), quantizer=name, network_options=sizes, network="maps", **options
    )
    x = torch.rand(64, 1, 4, 4).round().repeat_interleave(2, 2).repeat_interleave(2, 3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        out = model(x)
        out.loss.backward()
        optimizer.step()
        losses.append(out.recon.item())
    assert losses[-1] < 0.3 * losses[0], losses[::10]
    model.eval()
    codes = model.codes(x)
    assert codes.shape == (64, *model.code_shape)
    again = model.likelihood.mean(model.decode_codes(codes))
    torch.testing.assert_close(again, model.reconstruct(x))
    report = model.code_report(codes)
    assert 0 < report["codes_used"] <= 1 <= report["code_perplexity"]
    assert model.sample(3).shape == (3, 1, 8, 8)


# --- against vector-quantize-pytorch --------------------------------------------------------------


def theirs():
    return pytest.importorskip("vector_quantize_pytorch")


@pytest.mark.parametrize(
    "ours, their",
    [
        ({}, {}),
        ({"cosine": True}, {"use_cosine_sim": True}),
        ({"rotation": True}, {"rotation_trick": True}),
        ({"heads": 2}, {"heads": 2, "separate_codebook_per_head": True}),
        ({"heads": 2, "shared": True}, {"heads": 2}),
        (
            {"update": "gradient", "commitment": 1.0},
            {"learnable_codebook": True, "ema_update": False},
        ),
    ],
    ids=lambda options: "-".join(map(str, options)) or "plain",
)
def test_vq_is_theirs(ours, their):
    """Codes equal; losses, gradients and three updates to 1e-5."""
    dim = 6
    q = plain(**ours).float()
    options = {"codebook_dim": dim // 2} if "heads" in ours else {}
    v = theirs().VectorQuantize(
        dim=dim,
        codebook_size=9,
        decay=0.8,
        commitment_weight=1.0,
        threshold_ema_dead_code=0,
        **{"rotation_trick": False, **options, **their},
    )
    for p in (v.project_in, v.project_out):
        assert not list(p.parameters())
    with torch.no_grad():
        v._codebook.embed.copy_(q.codes)
        v._codebook.embed_avg.copy_(q.codes)
    for step in range(3):
        z, w = vectors(40, dim, seed=step).float(), vectors(40, dim, seed=9).float()
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        out, (found, index, loss) = q(a), v(b[None])
        assert torch.equal(out.codes, index[0].view(40, -1))
        torch.testing.assert_close(out.z, found[0], rtol=1e-5, atol=1e-5)
        # Theirs is a mean over elements; of a gradient codebook, one of the two equal terms.
        terms = 2 if "update" in ours else q.commitment
        torch.testing.assert_close(
            out.loss.sum() / (40 * dim) / terms, loss.sum(), rtol=1e-5, atol=0
        )
        commitment = out.loss.sum() / (40 * dim) / (1 if "update" in ours else terms)
        ((out.z * w).sum() + commitment).backward()
        ((found[0] * w).sum() + loss.sum()).backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
        if "update" in ours:
            torch.testing.assert_close(q.codes.grad, v._codebook.embed.grad, rtol=1e-5, atol=1e-6)
            q.codes.grad = v._codebook.embed.grad = None
        torch.testing.assert_close(
            q.codes.detach(), v._codebook.embed.detach(), rtol=1e-5, atol=1e-5
        )


def test_rvq_fsq_and_lfq_are_theirs():
    z = vectors(50, 6).float()
    torch.manual_seed(0)
    ours = make_quantizer("rvq", 6, layers=3, size=9, kmeans=0, dead_below=0, decay=0.8)
    v = theirs().ResidualVQ(
        dim=6, num_quantizers=3, codebook_size=9, decay=0.8, threshold_ema_dead_code=0
    )
    with torch.no_grad():
        for layer, other in zip(ours.layers, v.layers, strict=True):
            layer.codes.normal_()
            layer.sums.copy_(layer.codes)
            other._codebook.embed.copy_(layer.codes)
            other._codebook.embed_avg.copy_(layer.codes)
    for _ in range(2):
        out, (found, index, loss) = ours(z), v(z[None])
        assert torch.equal(out.codes, index[0])
        torch.testing.assert_close(out.z, found[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out.loss.mean() / 6 / 0.25, loss.sum(), rtol=1e-5, atol=0)

    fsq = theirs().FSQ(levels=[8, 5, 4, 3, 6, 7])
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    out, (found, index) = FSQ(6, levels=(8, 5, 4, 3, 6, 7))(a), fsq(b[None])
    assert torch.equal(out.codes[:, 0], index[0].long())
    torch.testing.assert_close(out.z, found[0], rtol=1e-5, atol=1e-5)
    (out.z * z).sum().backward()
    (found[0] * z).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)

    lfq = theirs().LFQ(dim=6, codebook_size=64, entropy_loss_weight=0.3, diversity_gamma=0.7,
                       commitment_loss_weight=0.25)  # fmt: skip
    small = 0.2 * z
    a, b = small.clone().requires_grad_(), small.clone().requires_grad_()
    own = LFQ(6, entropy=0.3, diversity=0.7, commitment=0.25 / 6, temperature=0.5)
    out, (found, index, loss) = own(a), lfq(b[None], inv_temperature=2.0)
    assert torch.equal(out.codes[:, 0], index[0].long())
    torch.testing.assert_close(out.loss.mean(), loss, rtol=1e-5, atol=1e-5)
    out.loss.mean().backward()
    loss.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)
