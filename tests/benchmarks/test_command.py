"""python -m benchmarks: options, errors, and a run from end to end."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vae_fast
from benchmarks import __main__ as command
from benchmarks import bench_large, suites
from benchmarks.peers import Op, torch_contender
from benchmarks.requirements import key_of
from benchmarks.results import load
from tests.conftest import NATIVE
from vae_fast import backend

measures = pytest.mark.skipif(not NATIVE, reason="benchmarks measure nothing without kernels")


@pytest.fixture
def small(monkeypatch):
    """One row of the standard suite, with the peers that need no compiler."""
    spec = suites.Spec("bernoulli_nll", (8, 30), "both")
    monkeypatch.setattr(suites, "standard", lambda quick=False: [spec])
    monkeypatch.setattr(suites, "training", list)
    monkeypatch.setattr(suites, "large", list)
    monkeypatch.setattr(command, "measure_bandwidth", lambda device, budget: {"add(out=)": 10.0})
    return ["--quick", "--peers", "eager,eager-logits"]


@measures
def test_a_run_prints_a_table_and_leaves_results(small, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main([*small, "--out", str(out), "--json", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    assert "bernoulli_nll" in printed
    assert "x eager-logits" in printed
    results = load(out / "results.json")
    assert results == load(tmp_path / "r.json")
    (row,) = results["rows"]
    assert set(row["results"]) == {"ours", "ours (buffer kept)", "eager", "eager-logits"}
    assert row["results"]["ours (buffer kept)"].get("peak_bytes", 0) < 4 * 8 * 30
    assert row["results"]["ours"]["peak_bytes"] >= 4 * 8 * 30
    assert results["versions"]["torch"] == torch.__version__
    assert (out / "report.md").exists()


@measures
def test_a_wrong_result_of_ours_fails_the_run(small, monkeypatch, capsys):
    def wrong(fn, op, pass_):
        return torch_contender("ours", lambda x, t: 2 * fn(x, t), Op(wrt=(0,)), pass_)

    monkeypatch.setattr("benchmarks.bench_bernoulli.ours", wrong)
    assert command.main(small) == 1
    assert "ours at bernoulli_nll/both/8x30/float32: refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "tpu"], "device must be auto, cpu or cuda, got 'tpu'"),
        (["--only", "no_such_op"], "no row of suite standard has 'no_such_op'"),
        (["--only", "no_such_op"], "it has\n  bernoulli_nll/both/8x30/float32\n"),
        (["--peers", "eager,jaks"], "no row has a peer 'jaks'; the peers are compile, "),
        pytest.param(["--compare", "nothing.json"], "nothing.json does not exist", marks=measures),
    ],
)
def test_bad_options_are_errors_before_any_work(options, said, small, monkeypatch, capsys):
    monkeypatch.setattr(command, "measure_bandwidth", lambda *_: pytest.fail("work was done"))
    assert command.main([*small, *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_without_a_gpu_is_an_error(small, capsys):
    assert command.main([*small, "--device", "cuda"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_the_example_of_only_is_valid_and_list_prints_the_keys(capsys):
    assert command.main(["--list", "--only", command.EXAMPLE]) == 0
    listed = capsys.readouterr().out.split()
    assert len(listed) == len(suites.STANDARD)
    assert all(key.startswith("bce_kl_loss/both/") for key in listed)
    assert command.main(["--list", "--suite", "sizes"]) == 0
    assert capsys.readouterr().out.split() == [key_of(spec) for spec in suites.sizes()]
    with pytest.raises(SystemExit):
        command.parse(["--help"])
    assert command.EXAMPLE in capsys.readouterr().out


def test_every_peer_that_the_rows_name_is_known():
    """The columns of the table, and what the requirements compare with."""
    from benchmarks import requirements, table
    from benchmarks.registry import known_peers

    needed = {r.peer for rs in requirements.GROUPS.values() for r in rs} - {"", "add(out=)"}
    assert {*needed, *table.PEERS} <= known_peers()


def test_an_uncompiled_clone_is_not_measured(small, monkeypatch, capsys):
    monkeypatch.setattr(command, "measure_bandwidth", lambda *_: pytest.fail("work was done"))
    with vae_fast.set_backend("reference"):
        assert command.main(small) == 2
    assert "unset VAE_FAST_BACKEND" in capsys.readouterr().err
    elsewhere = SimpleNamespace(__file__="/other/clone/vae_fast/_C.so")
    monkeypatch.setattr(backend, "_libraries", {"cpu": elsewhere})
    assert command.main(small) == 2
    assert "another clone's, /other/clone/vae_fast/_C.so" in capsys.readouterr().err
    monkeypatch.setattr(backend, "_libraries", {})
    monkeypatch.setattr(backend, "_reasons", {"cpu": "vae_fast._C is not built"})
    assert command.main(small) == 2
    said = capsys.readouterr().err
    assert f"in {Path(vae_fast.__file__).parent}, has no kernels" in said
    assert "VAE_FAST_BUILD=cpu python setup.py build_ext --inplace" in said


@measures
def test_an_interrupted_run_keeps_and_shows_its_finished_rows(small, monkeypatch, tmp_path, capsys):
    specs = [suites.Spec("bernoulli_nll", (8, n), "both") for n in (30, 40, 50)]
    monkeypatch.setattr(suites, "standard", lambda quick=False: specs)
    measured, interrupted = command.measure_case, []

    def once(case, *rest):
        if interrupted or case.shape != "8x40":
            return measured(case, *rest)
        interrupted.append(case.key)
        assert len(load(tmp_path / "out" / "results.json")["rows"]) == 1  # as a kill would leave it
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measure_case", once)
    assert command.main([*small, "--out", str(tmp_path / "out")]) == 130
    printed = capsys.readouterr()
    assert "8x30" in printed.out and "8x50" in printed.out.split("stopped before")[-2]
    results = load(tmp_path / "out" / "results.json")
    assert [row["key"] for row in results["rows"]] == [key_of(specs[0])]
    assert list(results["missing"]) == [key_of(spec) for spec in specs[1:]]
    assert (tmp_path / "out" / "report.md").exists()


def test_each_suite_has_its_rows():
    sizes = suites.sizes()
    elements = {s.shape[0] for s in sizes if len(s.shape) == 1}
    assert {1 << 10, 1 << 20, 1 << 27} <= elements
    assert {s.shape[1] for s in sizes if len(s.shape) == 2} == {784, 3072, 12288, 196608}
    assert {s.pass_ for s in sizes} == {"value", "gradient", "both"}
    assert {(s.dtype, s.target) for s in sizes} >= {("float32", "uint8"), ("bfloat16", "uint8")}
    assert {s.op for s in suites.standard()} == {
        *(f"{name}_nll" for name in suites.LIKELIHOODS),
        *suites.GAUSSIAN, "bernoulli_nll", "bce_kl_loss", "linear_bernoulli_nll", "iwae_bound",
        "group_norm_silu", "group_norm_silu_last", "gather", "total_correlation", "mixture_log_density", "mmd", "nearest_code",
    }  # fmt: skip
    examples = {path.stem for path in bench_large.EXAMPLES.glob("autoencoder_kl*.yaml")}
    assert {s.op for s in suites.large()} == set(bench_large.CONFIGURATIONS) == examples
