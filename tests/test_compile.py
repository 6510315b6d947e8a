"""torch.compile: one graph, the values and gradients of eager, dynamic shapes; opcheck of every op.

Most compile with "aot_eager", which traces and differentiates as Inductor does and generates no
code; Inductor itself runs once for each family of ops.
"""

import pytest
import torch

import vae_fast
from tests.fresh import python
from vae_fast import (
    bce_kl_loss,
    bernoulli_nll,
    bernoulli_nll_samples,
    gather_batch,
    gaussian_kl,
    group_norm_silu,
    iwae_bound,
    linear_bernoulli_nll,
    loss_function,
    reparameterize,
    sample_and_kl,
)
from vae_fast.backend import library
from vae_fast.likelihoods import SPECS

KEY = torch.tensor([77, -5])
ROWS = 6


@pytest.fixture(autouse=True)
def fresh_compiler(threads):
    threads(1)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gaussians(rows=ROWS, count=2, dtype=torch.float32):
    return [torch.randn(rows, 5).to(dtype) for _ in range(count)]


def images(rows=ROWS, dtype=torch.float32):
    return [torch.randn(rows, 33).to(dtype)]


def target_of(x, kind="uint8"):
    t = torch.linspace(0, 255, x.numel()).view_as(x)
    return t.to(torch.uint8) if kind == "uint8" else (t / 255).to(torch.float32)


FUNCTIONS = {
    "reparameterize": (lambda *a: reparameterize(*a, noise_key=KEY), gaussians),
    "reparameterize, 3 samples": (
        lambda *a: reparameterize(*a, num_samples=3, noise_key=KEY),
        gaussians,
    ),
    "gaussian_kl": (lambda *a: gaussian_kl(*a), gaussians),
    "gaussian_kl per sample": (lambda *a: gaussian_kl(*a, reduction="none"), gaussians),
    "gaussian_kl of a prior": (
        lambda *a: gaussian_kl(*a, reduction="batchmean"),
        lambda **k: gaussians(count=4, **k),
    ),
    "sample_and_kl": (lambda *a: sample_and_kl(*a, noise_key=KEY), gaussians),
    "sample_and_kl of a prior": (
        lambda *a: sample_and_kl(*a, noise_key=KEY, reduction="none"),
        lambda **k: gaussians(count=4, **k),
    ),
    "bernoulli_nll": (lambda x: bernoulli_nll(x, target_of(x)), images),
    "bernoulli_nll per sample": (
        lambda x: bernoulli_nll(x, target_of(x, "float"), reduction="none"),
        images,
    ),
    "bernoulli_nll of probabilities": (
        lambda x: bernoulli_nll(torch.sigmoid(x), target_of(x), from_logits=False),
        images,
    ),
    "bce_kl_loss": (
        lambda x, *a: tuple(bce_kl_loss(x, target_of(x), *a, beta=0.5)),
        lambda **k: images(**k) + gaussians(**k),
    ),
    "bce_kl_loss per sample": (
        lambda x, *a: tuple(bce_kl_loss(x, target_of(x), *a, reduction="none")),
        lambda **k: images(**k) + gaussians(**k),
    ),
    "bce_kl_loss with a beta tensor": (
        lambda x, *a: (
            bce_kl_loss(x, target_of(x), *a, beta=torch.tensor(2.0), reduction="batchmean").loss
        ),
        lambda **k: images(**k) + gaussians(**k),
    ),
    "group_norm_silu": (
        lambda x, w: group_norm_silu(x.unflatten(1, (3, 11)), 3, w, w[:3].sin()),
        lambda **k: images(**k) + [torch.randn(3)],
    ),
    "linear_bernoulli_nll": (
        lambda x, w: linear_bernoulli_nll(x, w, None, target_of(x[:, :5])),
        lambda **k: images(**k) + [torch.randn(5, 33)],
    ),
    "bernoulli_nll_samples": (
        lambda x: bernoulli_nll_samples(torch.stack([x, -x]), target_of(x)),
        images,
    ),
    "iwae_bound": (
        lambda x, *a: iwae_bound(torch.stack([x, -x]), target_of(x), torch.stack(a), *a)[0],
        lambda **k: images(**k) + gaussians(**k),
    ),
    "loss_function": (
        lambda x, *a: loss_function(target_of(x, "float"), torch.sigmoid(x), *a),
        lambda **k: images(**k) + gaussians(**k),
    ),
}
# The reference is plain PyTorch, and its Philox is a graph of thousands of nodes: the quick tests
# compile two families, the slow ones the rest.
SLOW = pytest.mark.slow
EVERY_DAY = {"gaussian_kl of a prior", "bce_kl_loss with a beta tensor"}
functions = pytest.mark.parametrize(
    "backend, name",
    [("native", name) for name in FUNCTIONS]
    + [
        pytest.param("reference", name, marks=() if name in EVERY_DAY else SLOW)
        for name in FUNCTIONS
    ],
    indirect=["backend"],
)


def run(function, inputs):
    """Values and gradients; the outputs are weighed so that upstream gradients are not 1."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((o * (i + 2)).sum() for i, o in enumerate(outputs))
    return [*(o.detach() for o in outputs), *torch.autograd.grad(total, leaves)]


def assert_same(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5)


@functions
def test_one_graph_with_eagers_results(backend, name):
    function, make = FUNCTIONS[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for rows in (ROWS, ROWS, 4):  # another number of rows makes torch compile for any
        inputs = make(rows=rows)
        assert_same(run(compiled, inputs), run(function, inputs))
    with torch.no_grad():
        inputs = make()
        got, want = compiled(*inputs), function(*inputs)
        assert_same(*(o if isinstance(o, tuple) else (o,) for o in (got, want)))


@pytest.mark.parametrize("name", ["sample_and_kl", "bce_kl_loss"])
def test_dynamic_shapes(native, name):
    function, make = FUNCTIONS[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (6, 9, 1):
        inputs = make(rows=rows)
        assert_same(run(compiled, inputs), run(function, inputs))


def test_one_image_of_a_traced_size(native):
    """Strides that are symbols can't be compared as tuples: a batch of one was an error."""

    def function(x):
        return bernoulli_nll(x.relu(), target_of(x))

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (3, 1):
        x = torch.randn(rows, 3, 4, 5)
        assert_same(run(compiled, [x]), run(function, [x]))


def test_gathered_batches_of_any_size(native):
    data = torch.arange(80, dtype=torch.uint8).view(8, 10)
    compiled = torch.compile(
        lambda i: gather_batch(data, i, mode="scale"), backend="aot_eager", fullgraph=True
    )
    for index in (torch.tensor([1, 5]), torch.tensor([0, 2, 7])):
        assert torch.equal(compiled(index), data[index] / 255)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(native, dtype):
    function, make = FUNCTIONS["bce_kl_loss"]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    inputs = make(dtype=dtype)
    assert_same(run(compiled, inputs), run(function, inputs))


def test_odd_layouts(native):
    function, _ = FUNCTIONS["bce_kl_loss"]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    inputs = [torch.randn(33, ROWS).t(), torch.randn(ROWS, 10)[:, ::2], torch.randn(5, ROWS).t()]
    assert_same(run(compiled, inputs), run(function, inputs))


def test_channels_last(native):
    function = torch.compile(
        lambda x: bernoulli_nll(x.relu(), target_of(x)), backend="aot_eager", fullgraph=True
    )
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert_same(run(function, [x]), run(lambda x: bernoulli_nll(x.relu(), target_of(x)), [x]))


def test_a_target_that_is_learnt(backend):
    def function(x, t):
        return bernoulli_nll(x, torch.sigmoid(t)) + bce_kl_loss(x, torch.sigmoid(t), x, x).loss

    compiled = torch.compile(function, backend="aot_eager")
    inputs = [torch.randn(4, 7), torch.randn(4, 7)]
    assert_same(run(compiled, inputs), run(function, inputs))


SAME_TENSOR_TWICE = {
    "reparameterize": lambda x: reparameterize(x, x, noise_key=KEY),
    "gaussian_kl": lambda x: gaussian_kl(x, x, x.sigmoid(), x),
    "sample_and_kl": lambda x: sum(y.sum() for y in sample_and_kl(x, x, noise_key=KEY)),
    "bernoulli_nll": lambda x: bernoulli_nll(x.sigmoid(), x.sigmoid()) + bernoulli_nll(x, x),
    "bce_kl_loss": lambda x: bce_kl_loss(x, x, x, x).loss,
}


@pytest.mark.parametrize("name", SAME_TENSOR_TWICE)
def test_one_tensor_in_several_places(backend, name):
    """Its gradient is the sum of all of theirs (torch 2.11's own tracing has one of them alone)."""
    function = SAME_TENSOR_TWICE[name]
    x = torch.rand(4, 7)
    assert_same(
        run(torch.compile(function, backend="aot_eager", fullgraph=True), [x]), run(function, [x])
    )


def test_fresh_noise_without_a_key(native):
    """Each call of a compiled function draws anew, and backward sees what forward drew."""
    compiled = torch.compile(
        lambda m, lv: sample_and_kl(m, lv), backend="aot_eager", fullgraph=True
    )
    mu, logvar = torch.zeros(50, 5), torch.zeros(50, 5, requires_grad=True)
    first, _ = compiled(mu, logvar)
    second, _ = compiled(mu, logvar)
    assert (first == second).float().mean() < 0.05
    (grad,) = torch.autograd.grad(second.sum(), logvar)
    torch.testing.assert_close(grad, second.detach() / 2)
    torch.manual_seed(8)
    third, _ = compiled(mu, logvar)
    torch.manual_seed(8)
    assert torch.equal(third, compiled(mu, logvar)[0])


def test_changing_the_backend_recompiles():
    """The choice is part of the graph's guards: reference after native is reference."""
    if vae_fast.backend.native_reason("cpu") is not None:
        pytest.skip(vae_fast.backend.native_reason("cpu"))
    targets = []

    def spy(graph, inputs):
        targets.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    compiled = torch.compile(lambda m, lv: gaussian_kl(m, lv), backend=spy, fullgraph=True)
    inputs = gaussians()
    for name in ("native", "reference", "native"):
        with vae_fast.set_backend(name):
            compiled(*inputs)
    assert [any("vae_fast" in t for t in graph) for graph in targets] == [True, False]


@pytest.mark.parametrize(
    "name",
    [
        "bce_kl_loss",
        pytest.param("reparameterize, 3 samples", marks=SLOW),
        pytest.param("sample_and_kl of a prior", marks=SLOW),
        pytest.param("bernoulli_nll", marks=SLOW),
    ],
)
def test_inductor(native, name):
    """torch.compile's default backend generates the code around the ops."""
    function, make = FUNCTIONS[name]

    def around(*inputs):
        outputs = function(*(2 * t.tanh() for t in inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(o.square() for o in outputs)

    inputs = make()
    assert_same(run(torch.compile(around, fullgraph=True), inputs), run(around, inputs))


def test_double_backward_of_a_compiled_loss_raises(native):
    compiled = torch.compile(lambda *a: gaussian_kl(*a), backend="aot_eager", fullgraph=True)
    mu, logvar = (t.requires_grad_() for t in gaussians())
    with pytest.raises(RuntimeError):
        (grad,) = torch.autograd.grad(compiled(mu, logvar), mu, create_graph=True)
        grad.square().sum().backward()


# --- opcheck -------------------------------------------------------------------------------------


def opcheck_cases():
    """Arguments for every op of the library, layouts and reductions in turn."""
    x, t = torch.randn(4, 3, 5, 6), torch.randint(256, (4, 3, 5, 6), dtype=torch.uint8)
    m, v, pm, pv = (torch.randn(4, 7) for _ in range(4))
    one, each = torch.rand(()), torch.rand(4)
    beta = torch.tensor(0.5)
    k, i, place = KEY, torch.tensor([3, 0, 3]), torch.tensor([5])
    half, last = torch.bfloat16, x.contiguous(memory_format=torch.channels_last)
    return {
        "reparameterize": [(m, v, k, None), (m.to(half), v.to(half), k, 3)],
        "reparameterize_backward": [(m, v, k, None), (torch.randn(3, 4, 7), v, k, 3)],
        "gaussian_kl": [(m.to(half), v.to(half), None, None, 0), (m, v, pm, pv, 1), (m.double(), v.double(), None, None, 2)],
        "sample_and_kl": [(m.to(half), v.to(half), None, None, k, 0), (m, v, pm, pv, k, 2)],
        "reparameterize_keeping": [(m, v, k), (m.double(), v.double(), k)],
        "sample_and_kl_keeping": [(m, v, None, None, k, 0), (m, v, pm, pv, k, 2)],
        "gaussian_backward": [(m, one, m, v, k, None, 1), (m, None, m, v, k, None, 2), (m, one, m, v, None, pm, 2), (None, each, m, v, None, None, 0)],
        "gaussian_prior_backward": [(m, one, m, v, pm, pv, k, None, 2), (m, one, m, v, pm, pv, None, v, 1), (None, each, m, v, pm, pv, None, None, 0)],
        "gather_batch": [(t, i, 0, None, 0, None), (t > 9, i, 0, None, 0, None), (t, i, 1, None, 0, None), (t, i, 2, k, 7, None), (t, i, 2, k, 0, place)],
        "euclidean_norm": [(x.flatten(),)],
        "group_norm": [(x, None, None, 3, 1e-5, True), (last.to(half), pm[0, :3], pm[1, :3], 1, 1e-5, False), (m.double(), None, None, 1, 0.1, True)],
        "group_norm_backward": [(x, x, None, None, pm[:, :3].contiguous(), pv[:, :3].exp(), True), (last, last, pm[0, :3], pm[1, :3], pm[:, :1].contiguous(), pv[:, :1].exp(), False)],
        **pairwise_cases(),
        **step_cases(),
        **{
            f"{spec.name}_{op}": calls
            for spec in SPECS.values()
            for op, calls in likelihood_cases(spec, m, v, one, each, beta).items()
        },
    }  # fmt: skip


def step_cases():
    heads, key, beta = torch.randn(4, 6), torch.tensor([1, 2]), torch.tensor(0.5)
    numbers = [torch.randn(32) for _ in range(4)]
    columns = [torch.randn(4, 5), torch.randn(4, 1)]
    state = [torch.tensor(3.0), torch.zeros(3), torch.zeros(4, dtype=torch.float64)]
    outcome, guard = torch.tensor([2.0, 0.0, 1.0, 0.1, 0.2]), [1.0, 5.0, 3.0, 50.0, 0.02]
    decided = (numbers[0], [0, 9, 16, 2], columns, [24, 10], beta, heads, beta, *state, 4, guard)
    return {
        "step_sample": [(heads, key)],
        "step_sample_backward": [(heads[:, :3].contiguous(), heads, key, beta, 0.25)],
        "step_decide": [(*decided, 0.9, 0.999)],
        "step_update": [
            (*numbers, None, outcome, beta, beta, 0.9, 0.999, 1e-8, 0.0, False, False),
            (*numbers, torch.zeros(32), outcome, beta, beta, 0.9, 0.999, 1e-8, 0.1, True, True),
        ],
    }


def pairwise_cases():
    ops, none = torch.ops.vae_fast, None
    z, mu, logvar = (torch.randn(6, 3) for _ in range(3))
    whole, parts, state = ops.pair_density(z, mu, logvar, none, 0.5, 0.7, -1.0, True)
    scales = torch.tensor([1.0, 2.0], dtype=torch.float64)
    return {
        "pair_density": [
            (z, mu, logvar, none, 0.5, 0.7, -1.0, True),
            (z, mu, logvar, mu[:, 0].contiguous(), 1.0, 1.0, 0.0, False),
        ],
        "pair_density_backward": [(whole, parts, z, mu, logvar, none, state, 0.5, 0.7, -1.0)],
        "mmd": [(z, mu, scales, 0, True)],
        "mmd_backward": [(torch.ones(()), z, mu, scales, 1, False)],
        "nearest_code": [(z, mu)],
    }


def likelihood_cases(spec, m, v, one, each, beta):
    """The ops of one likelihood: half precision and float32, shared and stacked parameters."""
    generator = torch.Generator().manual_seed(0)
    params, t = spec.inputs((4, 3, 5, 2), torch.float32, generator)
    half = [p.to(torch.bfloat16) for p in params]
    out = [torch.empty_like(p) for p in params]
    some = (1 << len(params)) - 1
    shared, plane = [params[0].flatten(2)], t.flatten(2) if spec.planes != 1 else t.flatten(1)
    shared += [p[:1, :, :1, 0].contiguous() for p in params[1:]]
    return {
        "nll": [(half, t, 0), (shared, plane, 1)],
        "nll_backward": [(each, half, t, 0, some), (one, shared, plane, 2, 1)],
        "nll_with_grad": [(params, t, 1, 1.0, some), (shared, plane, 2, 0.5, some)],
        "nll_with_grad_out": [(params, t, 1, 1.0, out)],
        "elbo": [(half, t, m, v, 0.5, None, 0), (params, t, m, v, 1.0, beta, 2)],
        "elbo_backward": [
            (each, None, None, half, t, m, v, 0.5, None, 0, some),
            (None, one, one, params, t, m, v, 1.0, beta, 1, 1),
        ],
        "elbo_with_grad": [(params, t, m, v, 0.5, None, 1, 1.0, some)],
    }


def registered():
    """The native ops, as torch's dispatcher knows them."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(n.removeprefix("vae_fast::") for n in names if n.startswith("vae_fast::"))


def test_the_lists_are_equal(native):
    """What C++ has is what Python says: every op is tried, every likelihood has a Spec."""
    assert sorted(opcheck_cases()) == registered()
    assert sorted(library().likelihoods()) == sorted(
        (spec.name, len(spec.params), spec.target, spec.planes) for spec in SPECS.values()
    )


@pytest.mark.parametrize("name", registered())
def test_opcheck(native, name):
    """Ops keep to their schemas and trace; fake kernels predict shapes, dtypes and strides.

    (test_autograd_registration does not apply: gradients are the wrappers' in vae_fast.ops.)
    """
    op = getattr(torch.ops.vae_fast, name).default
    for arguments in opcheck_cases()[name]:
        torch.library.opcheck(
            op,
            arguments,
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )


def test_importing_the_package_registers_every_fake_kernel(native):
    """Whatever else a process imports: torch.compile and opcheck need no module of the engine."""
    code = """
import torch, vae_fast
from torch._library.simple_registry import singleton
ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vae_fast::")]
print(len(ops), [name for name in ops if singleton.find(name).fake_impl.kernel is None])
"""
    done = python(code)
    count, _, without = done.stdout.partition(" ")
    assert without.strip() == "[]", done.stdout + done.stderr
    assert int(count) == len(registered())


def test_bare_ops_refuse_what_they_cannot_read(native):
    """Called directly, they raise, and never read out of bounds."""
    ops = torch.ops.vae_fast
    m, x = torch.randn(4, 7), torch.randn(4, 9)
    data, index = torch.zeros(4, 7, dtype=torch.uint8), torch.tensor([1, 3])
    bad = [
        lambda: ops.gaussian_kl(m, m[:, :3], None, None, 1),
        lambda: ops.gaussian_kl(m, m.double(), None, None, 1),
        lambda: ops.gaussian_kl(m[:, ::2], m[:, ::2], None, None, 1),
        lambda: ops.gaussian_kl(m, m, None, None, 3),
        lambda: ops.gaussian_kl(m, m, m, None, 1),
        lambda: ops.reparameterize(m, m, KEY[:1], None),
        lambda: ops.reparameterize(m, m, KEY, 0),
        lambda: ops.reparameterize(m, m, KEY.int(), None),
        lambda: ops.gaussian_backward(m, None, m, m, None, None, 1),
        lambda: ops.gaussian_backward(m, None, m, m, None, m[:3], 1),
        lambda: ops.gaussian_backward(m, None, m, m, None, m.double(), 1),
        lambda: ops.bernoulli_nll([x], x[:, :4].contiguous(), 1),
        lambda: ops.bernoulli_nll([], x, 1),
        lambda: ops.bernoulli_nll([x, x], x, 1),
        lambda: ops.bernoulli_nll([x.long()], x, 1),
        lambda: ops.bernoulli_nll_backward(torch.ones(3), [x], x, 0, 1),
        lambda: ops.bernoulli_nll_with_grad_out([x], x, 1, 1.0, [x[:3]]),
        lambda: ops.bernoulli_nll_with_grad_out([x], x, 1, 1.0, []),
        lambda: ops.bernoulli_elbo([x], x, m[:3], m[:3], 1.0, None, 1),
        lambda: ops.bernoulli_elbo([x], x, m, m, 1.0, torch.ones(2), 1),
        lambda: ops.bernoulli_elbo_backward(None, None, None, [x], x, m, m, 1.0, None, 1, 1),
        lambda: ops.gaussian_nll([x[:3], x[:3]], x, 1),
        lambda: ops.gaussian_nll([x, x[:, :4].contiguous()], x, 1),
        lambda: ops.gaussian_nll([torch.cat([x, x, x], 1)], x, 1),
        # One argument on another device: the kernel can't read its memory.
        lambda: ops.bernoulli_nll([x], x.to("meta"), 1),
        lambda: ops.bernoulli_nll([x.to("meta")], x, 1),
        lambda: ops.bernoulli_nll_backward(torch.ones(4, device="meta"), [x], x, 0, 1),
        lambda: ops.bernoulli_elbo([x], x, m, m, 1.0, torch.ones((), device="meta"), 1),
        lambda: ops.bernoulli_elbo([x], x, m.to("meta"), m.to("meta"), 1.0, None, 1),
        lambda: ops.reparameterize(m, m, KEY.to("meta"), None),
        lambda: ops.reparameterize_backward(m.to("meta"), m, KEY, None),
        lambda: ops.reparameterize_backward(m, m, KEY, 0x5555555555555556),
        lambda: ops.reparameterize(m, m, KEY, 1 << 61),
        lambda: ops.gaussian_kl(m, m.to("meta"), None, None, 1),
        lambda: ops.gaussian_backward(m.to("meta"), None, m, m, KEY, None, 1),
        lambda: ops.gather_batch(data, index, 2, KEY.to("meta"), 0, None),
        lambda: ops.gather_batch(data, index, 2, KEY, 0, torch.tensor(1, device="meta")),
        lambda: ops.gather_batch(data, index.to("meta"), 2, KEY, 0, None),
        lambda: ops.euclidean_norm(x),
        lambda: ops.euclidean_norm(x[0].double()),
        lambda: ops.euclidean_norm(x[0, ::2]),
    ]
    for call in bad:
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize(
    "function",
    [
        lambda a, t: bernoulli_nll(a, t),
        lambda a, t: gaussian_kl(a, t),
        lambda a, t: bce_kl_loss(a, t, a, a).loss,
    ],
    ids=["bernoulli_nll", "gaussian_kl", "bce_kl_loss"],
)
def test_transforms_within_keep_their_gradients(function):
    """Dynamo drops a custom op's gradient under them, without a word."""
    a, t = torch.randn(3, 5), torch.rand(3, 5)
    expected = by_hand(function, a, t)
    compiled = torch.compile(torch.func.grad(function), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(a, t), expected)

    def mapped(batch):
        return torch.func.vmap(lambda a: function(a, t))(batch).sum()

    batch = torch.stack([a, a]).requires_grad_()
    total = torch.compile(mapped, backend="aot_eager", fullgraph=True)(batch)
    (found,) = torch.autograd.grad(total, batch)
    torch.testing.assert_close(found[1], expected)


def by_hand(function, a, t):
    leaf = a.clone().requires_grad_()
    with vae_fast.set_backend("reference"):
        return torch.autograd.grad(function(leaf, t), leaf)[0]


def test_numbers_that_change_do_not_compile_anew():
    """A beta that warms up, and an epoch's rows."""
    x, t, mu = torch.randn(4, 5), torch.rand(4, 5), torch.randn(4, 2)
    loss = torch.compile(
        lambda beta: bce_kl_loss(x, t, mu, mu, beta=beta).loss, backend="aot_eager", fullgraph=True
    )
    for i in range(20):
        torch.testing.assert_close(loss(0.05 * i), bce_kl_loss(x, t, mu, mu, beta=0.05 * i).loss)
    wide = [v.double() for v in (x, t, mu, mu)]
    exact = torch.compile(lambda *a: bce_kl_loss(*a, beta=0.1).loss, backend="aot_eager")
    torch.testing.assert_close(exact(*wide), bce_kl_loss(*wide, beta=0.1).loss, rtol=1e-12, atol=0)
    data, index = torch.arange(80, dtype=torch.uint8).view(8, 10), torch.tensor([1, 5])
    rows = {"mode": "binarize", "noise_key": KEY}
    batch = torch.compile(
        lambda first: gather_batch(data, index, first_row=first, **rows),
        backend="aot_eager", fullgraph=True,
    )  # fmt: skip
    for first in range(0, 40, 2):
        assert torch.equal(batch(first), gather_batch(data, index, first_row=first, **rows))
