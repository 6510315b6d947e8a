"""python -m benchmarks: options, errors, and a run from end to end."""

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import bench_large, suites
from benchmarks.peers import Op, torch_contender
from benchmarks.results import load


@pytest.fixture
def small(monkeypatch):
    """One row of the standard suite, with the peers that need no compiler."""
    spec = suites.Spec("bernoulli_nll", (8, 30), "both")
    monkeypatch.setattr(suites, "standard", lambda: [spec])
    monkeypatch.setattr(suites, "training", list)
    monkeypatch.setattr(suites, "large", list)
    monkeypatch.setattr(command, "measure_bandwidth", lambda device, budget: {"add(out=)": 10.0})
    return ["--quick", "--peers", "eager,eager-logits"]


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
        (["--compare", "nothing.json"], "nothing.json does not exist"),
    ],
)
def test_bad_options_are_said_before_any_work(options, said, small, monkeypatch, capsys):
    monkeypatch.setattr(command, "measure_bandwidth", lambda *_: pytest.fail("work was done"))
    assert command.main([*small, *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_without_a_gpu_is_said(small, capsys):
    assert command.main([*small, "--device", "cuda"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_the_suites_have_what_they_are_for():
    sizes = suites.sizes()
    elements = {s.shape[0] for s in sizes if len(s.shape) == 1}
    assert {1 << 10, 1 << 20, 1 << 27} <= elements
    assert {s.shape[1] for s in sizes if len(s.shape) == 2} == {784, 3072, 12288, 196608}
    assert {s.pass_ for s in sizes} == {"value", "gradient", "both"}
    assert {(s.dtype, s.target) for s in sizes} >= {("float32", "uint8"), ("bfloat16", "uint8")}
    assert {s.op for s in suites.standard()} == {
        *suites.GAUSSIAN, "bernoulli_nll", "bce_kl_loss", "linear_bernoulli_nll", "iwae_bound",
        "gather",
    }  # fmt: skip
    examples = {path.stem for path in bench_large.EXAMPLES.glob("autoencoder_kl*.yaml")}
    assert {s.op for s in suites.large()} == set(bench_large.CONFIGURATIONS) == examples
