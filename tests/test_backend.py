"""The choice of the backend, and messages about a missing one."""

import re
import sysconfig
import warnings

import pytest
import torch

import vae_fast
import vae_fast.models
from tests.fresh import python
from vae_fast import backend as backend_module
from vae_fast import built
from vae_fast.backend import library, native_reason, use_native

NATIVE = native_reason("cpu") is None
needs_native = pytest.mark.skipif(not NATIVE, reason="the kernels are not built")


@pytest.fixture
def nothing_built(monkeypatch):
    """As on a machine without a compiler."""
    monkeypatch.setattr(backend_module, "_libraries", {})
    monkeypatch.setattr(backend_module, "node", None)
    monkeypatch.setattr(backend_module, "_reasons", {"cpu": "vae_fast._C is not built; reinstall"})
    monkeypatch.setattr(backend_module, "_warned", set())
    monkeypatch.setattr(backend_module, "_choice", "auto")


# --- the choice ----------------------------------------------------------------------------------


def test_set_backend_for_good_and_for_a_block():
    before = vae_fast.get_backend()
    try:
        vae_fast.set_backend("reference")
        assert vae_fast.get_backend() == "reference"
        with vae_fast.set_backend("auto"):
            assert vae_fast.get_backend() == "auto"
            with vae_fast.set_backend("reference"):
                assert vae_fast.get_backend() == "reference"
            assert vae_fast.get_backend() == "auto"
        assert vae_fast.get_backend() == "reference"
    finally:
        vae_fast.set_backend(before)


def test_a_block_left_by_an_error_is_undone():
    before = vae_fast.get_backend()
    with pytest.raises(ZeroDivisionError), vae_fast.set_backend("reference"):
        raise ZeroDivisionError
    assert vae_fast.get_backend() == before


def test_an_unknown_backend_is_an_error():
    before = vae_fast.get_backend()
    with pytest.raises(ValueError, match="one of auto, native, reference, got 'cuda'"):
        vae_fast.set_backend("cuda")
    assert vae_fast.get_backend() == before


def test_the_choice_decides_which_backend_computes(monkeypatch):
    """The reference backend calls no native kernel."""
    calls = []
    real = vae_fast.reference.gaussian_kl
    monkeypatch.setattr(vae_fast.reference, "gaussian_kl", lambda *a: calls.append(1) or real(*a))
    mu = torch.ones(2, 3)
    with vae_fast.set_backend("reference"):
        vae_fast.gaussian_kl(mu, mu)
    assert calls == [1]
    if NATIVE:
        with vae_fast.set_backend("native"):
            vae_fast.gaussian_kl(mu, mu)
        with vae_fast.set_backend("auto"):
            vae_fast.gaussian_kl(mu, mu)
        assert calls == [1]


# --- fallbacks -----------------------------------------------------------------------------------


def test_auto_falls_back_with_one_warning(nothing_built):
    mu = torch.ones(2, 3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert vae_fast.gaussian_kl(mu, 0 * mu).item() == 3.0
        assert vae_fast.gaussian_kl(mu, 0 * mu).item() == 3.0
        vae_fast.reparameterize(mu, mu)
    (seen,) = seen
    assert seen.category is RuntimeWarning
    assert "plain PyTorch on cpu: vae_fast._C is not built; reinstall" in str(seen.message)
    assert seen.filename == __file__  # the caller's line, not ours


def test_reference_does_not_warn(nothing_built):
    with warnings.catch_warnings(), vae_fast.set_backend("reference"):
        warnings.simplefilter("error")
        vae_fast.gaussian_kl(torch.ones(2, 3), torch.ones(2, 3))


def test_native_raises_with_the_reason(nothing_built):
    with vae_fast.set_backend("native"), pytest.raises(RuntimeError, match="_C is not built"):
        vae_fast.gaussian_kl(torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="not built"):
        library("cpu")


@pytest.mark.skipif(native_reason("cuda") is None, reason="the CUDA kernels are here")
def test_native_cuda_without_cuda_says_why():
    reason = native_reason("cuda")
    assert "CUDA" in reason
    with vae_fast.set_backend("native"):
        with pytest.raises(RuntimeError) as error:
            use_native("cuda")
        assert reason in str(error.value) and "'native'" in str(error.value)
    with pytest.raises(RuntimeError):
        library("cuda")


def test_a_device_type_without_kernels():
    mu = torch.ones(2, 3, device="meta")
    with vae_fast.set_backend("native"), pytest.raises(RuntimeError, match="'meta'"):
        vae_fast.gaussian_kl(mu, mu)
    with vae_fast.set_backend("reference"):
        assert vae_fast.gaussian_kl(mu, mu, reduction="none").shape == (2,)


# --- why a library is missing --------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, torch_version, message",
    [
        (None, "2.13.0", "is not built; reinstall with a C\\+\\+ compiler"),
        ("_C.cpython-39-x86_64-linux-gnu.so", "2.13.0", "another Python .*cpython-39.*this Python"),
        ("_C{suffix}", "2.9.1", "built for torch 2.11 or newer, and this is torch 2.9.1"),
        ("_C{suffix}", "2.13.0", "does not load under torch 2.13.0: undefined symbol: x"),
    ],
)
def test_why_a_library_is_missing(monkeypatch, tmp_path, file, torch_version, message):
    if file is not None:
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        (tmp_path / file.format(suffix=suffix)).touch()
    monkeypatch.setattr(backend_module, "_PACKAGE", tmp_path)
    monkeypatch.setattr(torch, "__version__", torch_version)
    sentence = backend_module._why_missing("_C", ImportError("undefined symbol: x"))
    assert re.search(message, sentence), sentence


def test_a_library_of_other_sources_is_set_aside_with_the_command_that_rebuilds():
    """It lacks ops that this package calls: plain PyTorch computes, or the call raises."""
    result = python(
        "import sys, types, warnings\n"
        "sys.modules['vae_fast._C'] = old = types.ModuleType('vae_fast._C')\n"
        "old.__file__, old.build_info = '/somewhere/_C.so', dict\n"
        "import torch, vae_fast\n"
        "one = torch.ones(2, 3)\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    print(vae_fast.gaussian_kl(one, 0 * one).item(), vae_fast.mmd(one, one).item())\n"
        "(warning,) = seen\n"
        "print(warning.message)\n"
        "print(vae_fast.info()['native cpu'])\n"
        "with vae_fast.set_backend('native'):\n"
        "    vae_fast.gaussian_kl(one, one)\n"
    )
    values, *said = result.stdout.splitlines()
    assert values.split()[0] == "3.0", result.stderr
    for sentence in (*said, result.stderr.splitlines()[-1]):
        assert "vae_fast._C (_C.so) was compiled from other sources" in sentence
        assert "no Step" in sentence and "more such differences; rebuild it: " in sentence
        assert re.search("python setup.py build_ext --inplace|pip install", sentence)


@needs_native
def test_the_required_ops_are_the_registered_ops(monkeypatch):
    """The list of required ops equals the registered ops."""
    registered = {
        schema.name.removeprefix("vae_fast::"): len(schema.arguments)
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("vae_fast::")
    }
    assert built.expected_ops() == registered
    assert built.why_stale(library()) is None
    monkeypatch.setitem(built.OPS, "mmd", 6)
    monkeypatch.setitem(built.OPS, "mmd_of_three", 6)
    said = "an op mmd of 5 arguments instead of 6, no op mmd_of_three"
    assert built.why_stale(library()) == said


# --- info ----------------------------------------------------------------------------------------


def test_info():
    facts = vae_fast.info()
    assert facts["vae_fast"] == vae_fast.__version__
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    if NATIVE:
        assert facts["native cpu"] == "yes"
        assert facts["cpu capability"] in facts["cpu capabilities"].split(", ")
        assert re.fullmatch(r"2\.\d+\.\d.*", facts["built with torch"])  # not always the one here
    else:
        assert facts["native cpu"].startswith("no: ")
    with vae_fast.set_backend("reference"):
        assert vae_fast.info()["backend"] == "reference"


def test_info_says_why_there_is_no_library(nothing_built, monkeypatch):
    monkeypatch.setitem(backend_module._reasons, "cuda", "this torch is built without CUDA")
    facts = vae_fast.info()
    assert facts["native cpu"] == "no: vae_fast._C is not built; reinstall"
    assert facts["native cuda"] == "no: this torch is built without CUDA"


# --- the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "native", "reference", ""])
def test_backend_from_the_environment(name):
    if name == "native" and not NATIVE:
        pytest.skip("the kernels are not built")
    result = python("import vae_fast; print(vae_fast.get_backend())", VAE_FAST_BACKEND=name)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [name or "auto"]


def test_an_unknown_backend_in_the_environment():
    result = python("import vae_fast", VAE_FAST_BACKEND="fastest")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "VAE_FAST_BACKEND" in last and "auto, native, reference" in last and "'fastest'" in last


@needs_native
@pytest.mark.parametrize("level", library().cpu_capabilities() if NATIVE else [])
def test_capability_from_the_environment(level):
    code = (
        "import torch, vae_fast; from vae_fast.backend import library;"
        "print(library().cpu_capability(), vae_fast.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3)).item())"
    )
    result = python(code, VAE_FAST_CPU_CAPABILITY=level)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [level, "3.0"]


@needs_native
def test_an_unknown_capability_lists_the_levels():
    result = python("import vae_fast", VAE_FAST_CPU_CAPABILITY="avx1024")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "VAE_FAST_CPU_CAPABILITY=avx1024" in last
    assert ", ".join(library().cpu_capabilities()) in last


@needs_native
def test_set_cpu_capability():
    levels, before = library().cpu_capabilities(), library().cpu_capability()
    assert levels[0] == "generic"
    try:
        for level in levels:
            library().set_cpu_capability(level)
            assert library().cpu_capability() == level
        with pytest.raises(RuntimeError, match=", ".join(levels)):
            library().set_cpu_capability("sse9")
        assert library().cpu_capability() == levels[-1]
    finally:
        library().set_cpu_capability(before)


def test_import_needs_torch_and_numpy_only():
    """Everything else is imported when it is used."""
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import vae_fast;"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(' '.join(sorted(new & {'torchvision', 'matplotlib', 'jsonargparse', 'yaml',"
        " 'safetensors', 'tqdm', 'PIL', 'scipy', 'jax', 'tensorboard'})))"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


class _Part(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.model = vae_fast.models.build(
            "vae", (1, 4, 4), network_options={"hidden": [8]}, latent_dim=2
        )
        self.call = call

    def forward(self, x):
        return self.call(self.model, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_export_of_networks_works_and_of_scores_names_the_remedy(native, tmp_path, dynamo):
    pytest.importorskip("onnxscript")
    x = torch.rand(3, 1, 4, 4)
    options = {"dynamo": dynamo, "verbose": False}
    for call in (lambda m, x: m.encoder(x), lambda m, x: m.reconstruct(x)):
        torch.onnx.export(_Part(call), (x,), tmp_path / "part.onnx", **options)
    scores = _Part(lambda m, x: vae_fast.gaussian_kl(*m.encode(x), reduction="none"))
    with pytest.raises(Exception, match=r"set_backend\('reference'\)"):
        torch.onnx.export(scores, (x,), tmp_path / "part.onnx", **options)
    with vae_fast.set_backend("reference"):
        torch.onnx.export(scores, (x,), tmp_path / "part.onnx", **options)


def test_import_takes_no_compiler_along():
    """torch's Dynamo costs seconds; a decorator of torch.compiler imports it."""
    code = """
import sys, torch
before = set(sys.modules)
import vae_fast, vae_fast.models
new = {name for name in set(sys.modules) - before if not name.startswith("vae_fast")}
print(len(new), sorted(n for n in new if n.startswith(("torch._dynamo", "torch.onnx", "sympy"))))
"""
    done = python(code)
    count, _, heavy = done.stdout.partition(" ")
    assert heavy.strip() == "[]" and int(count) < 20, done.stdout + done.stderr


def test_the_kernels_are_refused_within_onnx_export(native, monkeypatch):
    """As above, without the packages that torch needs to export."""
    monkeypatch.setattr(backend_module, "_exports_onnx", lambda: True)
    mu = torch.zeros(2, 2)
    with pytest.raises(RuntimeError, match=r"ONNX.*set_backend\('reference'\)"):
        torch.jit.trace(lambda m: vae_fast.gaussian_kl(m, m), mu)
    assert vae_fast.gaussian_kl(mu, mu) == 0  # nothing is traced
