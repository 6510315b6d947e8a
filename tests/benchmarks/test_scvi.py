import importlib.util

from benchmarks import scvi_epoch


def test_scvi_tools_that_are_missing_are_named(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "scvi" else find(name, *a)
    )
    monkeypatch.setattr("sys.argv", ["scvi_epoch"])
    scvi_epoch.main()
    assert (
        "nothing is measured: scvi-tools is not installed: pip install" in capsys.readouterr().out
    )


def test_counts_are_those_of_single_cells():
    data = scvi_epoch.counts(200, 100)
    assert data.shape == (200, 100) and data.dtype.name == "float32"
    assert 0.7 < (data == 0).mean() < 0.95 and (data == data.round()).all()
