"""What is derived from times, the union of two runs, requirements, tables and the report."""

import itertools
import json

import pytest

from benchmarks import change, report, requirements, table
from benchmarks.requirements import BUFFER, Requirement, judge
from benchmarks.results import (
    FORMAT,
    fastest,
    gigabytes_per_second,
    load,
    merge,
    ratio,
    save,
    share,
)
from benchmarks.suites import Spec


def entry(median, **more):
    return {
        "median": median,
        "low": 0.9 * median,
        "high": 1.1 * median,
        "rounds": 9,
        "calls": 3,
    } | more


def row(elements, ours, op="bernoulli_nll", **peers):
    return {
        "key": f"{op}/both/{elements}/float32", "op": op, "pass": "both", "shape": str(elements),
        "dtype": "float32", "target": "", "elements": elements, "samples": None,
        "bytes": 12 * elements, "sets": 4, "set_bytes": 8 * elements, "in_cache": elements < 1 << 20,
        "note": "", "results": {"ours": entry(ours, peak_bytes=4 * elements), **peers},
    }  # fmt: skip


@pytest.fixture
def results():
    """A hand-made run: 2^16 and 2^20 elements, ours at 12 and 48 GB/s of a roof of 60."""
    rows = [
        row(1 << 16, 12 * (1 << 16) / 12e9,
            eager=entry(2e-3, peak_bytes=786432), compile=entry(2.5e-4),
            jax={"absent": "jax is not installed"}),
        row(1 << 20, 12 * (1 << 20) / 48e9,
            eager=entry(1e-2, peak_bytes=12582912), compile=entry(1.5e-3),
            **{"compile-max-autotune": entry(1.2e-3), "add(out=)": entry(2.1e-4, bytes=12 << 20),
               "eager-logits": entry(9e-4), "jax": {"refused": "the loss is 1, and 2 in float64"},
               BUFFER: entry(2.5e-4, peak_bytes=4)}),
    ]  # fmt: skip
    return {
        "format": FORMAT, "suite": "sizes", "quick": False, "device": "cpu",
        "machine": {"cpu": "A processor", "threads": 2, "cores": 2, "last-level cache bytes": 1 << 25,
                    "vae_fast cpu capability": "avx2", "load average at start": 0.1},
        "versions": {"torch": "2.99", "jax": None}, "commit": "abc", "date": "2026-01-02T03:04:05Z",
        "bandwidth": {"add(out=)": 60.0, "copy": 50.0}, "rows": rows, "missing": {},
    }  # fmt: skip


def test_derived_numbers(results):
    large = results["rows"][1]
    ours = 12 * (1 << 20) / 48e9
    assert ratio(large, "eager") == pytest.approx(1e-2 / ours)
    assert ratio(large, "jax") is None
    assert gigabytes_per_second(large) == pytest.approx(48.0)
    assert gigabytes_per_second(large, "add(out=)") == pytest.approx(12 * (1 << 20) / 2.1e-4 / 1e9)
    assert share(large, results) == pytest.approx(0.8)


def test_the_best_mode_of_torch_compile_stands_for_it(results):
    small, large = results["rows"]
    assert fastest(large, "compile") == "compile-max-autotune"
    assert fastest(small, "compile") == "compile"
    # The faster spelling is a peer of its own: "eager" is what the tutorial writes.
    assert fastest(large, "eager") == "eager"
    assert fastest(small, "jax") is None


def test_results_survive_the_file(results, tmp_path):
    save(results, tmp_path / "deep" / "results.json")
    assert load(tmp_path / "deep" / "results.json") == results


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}'])
def test_a_file_that_is_no_results_file_is_named(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not a results file"):
        load(tmp_path / "x.json")
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "y.json")


def test_merging_keeps_the_better_of_each_peer_and_our_own(results):
    other = json.loads(json.dumps(results))
    other["versions"]["torch"] = "2.13"
    there = other["rows"][1]["results"]
    there["eager"]["median"], there["compile"]["median"], there["ours"]["median"] = 8e-3, 9.0, 1e-9
    there["jax"] = entry(3e-3)
    merged = merge(results, other)["rows"][1]["results"]
    assert merged["eager"]["median"] == 8e-3
    assert merged["eager"]["torch"] == "2.13"
    assert merged["compile"]["median"] == 1.5e-3
    assert merged["ours"] == results["rows"][1]["results"]["ours"]
    assert merged["jax"]["median"] == 3e-3  # refused here, and right there
    assert "median" not in results["rows"][1]["results"]["jax"]  # the run itself is left as it is


def test_runs_of_two_machines_do_not_merge(results):
    other = json.loads(json.dumps(results))
    other["machine"]["cpu"] = "Another processor"
    with pytest.raises(ValueError, match=r"'Another processor'.*'A processor'"):
        merge(results, other)


def requirement(measure, least, *exponents, peer="", mine="ours"):
    specs = tuple(Spec("bernoulli_nll", (1 << e,), "both") for e in exponents)
    return Requirement("what", measure, least, specs, peer, mine)


@pytest.mark.parametrize(
    ("asked", "measured"),
    [
        # The worst of its rows: 2e-3 s over 65.5 us, not 1e-2 s over 262 us.
        (requirement("times", 1, 16, 20, peer="eager"), 2e-3 / (12 * (1 << 16) / 12e9)),
        (requirement("times", 1, 20, peer="compile"), 1.2e-3 / (12 * (1 << 20) / 48e9)),
        (requirement("rate", 1, 20, mine=BUFFER), (1 << 20) / 2.5e-4),
        (requirement("share", 1, 20, peer="add(out=)", mine=BUFFER), 2.1e-4 / 2.5e-4),
        (requirement("memory", 1, 20, peer="eager"), 3.0),
    ],
    ids=["worst", "best mode", "rate", "share", "memory"],
)
def test_requirements_are_judged_by_their_worst_row(asked, measured, results):
    (verdict,) = judge((asked,), results)
    assert verdict.measured == pytest.approx(measured)


def test_a_requirement_without_a_measurement_says_why(results):
    results["missing"]["linear_bernoulli_nll/both/1024x400x784/float32"] = "not built"
    asked = (
        requirement("times", 1, 20, peer="jax"),
        requirement("times", 1, 22, peer="eager"),
        requirements.LIMITS[10],
    )
    verdicts = list(judge(asked, results))
    assert [v.measured for v in verdicts] == [None, None, None]
    assert "jax refused: the loss is 1" in verdicts[0].why
    assert verdicts[1].why == "not measured in this run"
    assert verdicts[2].why == "not built"


def test_keys_of_specs_are_keys_of_cases():
    import torch

    from benchmarks.case import Absent
    from benchmarks.registry import make, setups

    known = setups()
    specs = {s for group in requirements.GROUPS.values() for s in requirements.specs(group)}
    for spec in specs:
        if spec.op in known:
            try:
                case = make(spec, torch.device("cpu"), [])
            except Absent:  # a configuration for a GPU alone
                continue
            assert case.key == requirements.key_of(spec)


def test_the_table_has_ratios_rates_and_missing_peers(results):
    text = table.rows_table(results)
    head, _, small, large, kept = text.splitlines()
    assert "x compile-max-autotune" in head
    assert "cached" in small  # 2^16 elements stay in the cache: no share of the memory's bandwidth
    assert "80%" in large
    assert kept.startswith("bernoulli_nll (buffer kept)")
    assert f"{1e-2 / 2.5e-4:.3g}" in kept
    assert table.left_out(results) == [
        "jax: absent, jax is not installed",
        "jax at bernoulli_nll/both/1048576/float32: refused, the loss is 1, and 2 in float64",
    ]


def test_a_busy_machine_is_reported(results):
    assert "OTHERS" not in table.heading(results)
    results["machine"]["load average at start"] = 3.5
    assert "load average 3.5 on 2 cores" in table.heading(results)


def test_requirements_table_says_yes_and_no(results):
    asked = (requirement("times", 30, 20, peer="eager"), requirement("times", 99, 20, peer="eager"))
    yes, no = table.requirements_table(judge(asked, results)).splitlines()[2:]
    assert yes.endswith("yes")
    assert "38.1 x eager" in yes
    assert no.endswith("NO")


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0, "2 s"), (1.5e-3, "1.5 ms"), (2.25e-5, "22.5 µs"), (3e-8, "30 ns")],
)
def test_seconds_are_readable(value, text):
    assert table.seconds(value) == text


def test_the_report_has_both_pictures_and_all_rows(results, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib import image

    written = report.write(results, tmp_path)
    assert [p.name for p in written] == ["report.md", "results.csv", "roofline.png", "ratios.png"]
    text = written[0].read_text()
    assert "A processor, 2 threads" in text
    assert "torch 2.99" in text
    table_of_rows = text[text.index("## bernoulli_nll, both") :].split("##")[1]
    assert table_of_rows.count("| bernoulli_nll") == 3
    assert "![ratios](ratios.png)" in text
    for picture in written[2:]:
        pixels = image.imread(picture)[..., :3]
        assert pixels.shape[0] > 200
        # Lines in the colour of a peer are there, not only axes: eager's is #d55e00.
        eager = abs(pixels - [0xD5 / 255, 0x5E / 255, 0]).max(-1) < 0.02
        assert eager.sum() > 50


def test_rows_of_one_size_are_dots_in_a_line_each(results, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    results["rows"][1] = row(1 << 18, 1e-3, op="iwae_bound", eager=entry(3e-3))
    assert [path.name for path in report.draw(results, tmp_path)] == ["ratios.png"]
    axis = drawn[0].axes[0]
    labels = [text.get_text().splitlines()[0] for text in axis.get_yticklabels()]
    assert labels == ["bernoulli_nll", "iwae_bound"]
    dots = {found.get_label(): found.get_offsets().tolist() for found in axis.collections}
    assert dots["plain PyTorch"] == [[pytest.approx(2e-3 / (12 * 65536 / 12e9)), 0], [3.0, 1]]


@pytest.mark.parametrize("panels", [1, 2])
def test_a_picture_s_legend_covers_no_words(results, tmp_path, monkeypatch, panels):
    if panels == 2:
        results["rows"].append(row(1 << 18, 1e-3, op="iwae_bound", eager=entry(3e-3)))
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    report.draw(results, tmp_path)
    monkeypatch.undo()
    assert len(drawn) == 2
    for figure in drawn:
        (legend,) = figure.legends
        words = [figure._suptitle, *(axis.xaxis.label for axis in figure.axes)]
        words += [axis.title for axis in figure.axes] + figure.texts
        boxes = [w.get_window_extent() for w in {*words} if w.get_text() and w.get_visible()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert len(boxes) > 2
        assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
        pyplot.close(figure)


def test_the_report_without_matplotlib_says_how_to_get_pictures(results, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    written, _ = report.write(results, tmp_path)
    assert "pip install 'vae_fast[train]'" in written.read_text()


def test_the_projects_goals_are_in_a_file_of_their_own(results, tmp_path):
    results["suite"] = "must-show"
    written = report.write(results, tmp_path)
    assert written[-1].name == "requirements.md" and "| met |" in written[-1].read_text()
    assert "equired" not in written[0].read_text()


def moved(results, factor, spread=0.1):
    """The same run with ours at ``factor`` of its time and quartiles ``spread`` apart."""
    rows = []
    for one in results["rows"]:
        median = factor * one["results"]["ours"]["median"]
        ours = entry(median, low=(1 - spread) * median, high=(1 + spread) * median)
        rows.append(dict(one, results=one["results"] | {"ours": ours}))
    return dict(results, rows=rows)


@pytest.mark.parametrize(
    ("factor", "spread", "said"),
    [
        (1.5, 0.1, "slower"),
        (0.5, 0.1, "faster"),
        (1.15, 0.1, "noise"),  # the quartiles overlap
        (1.04, 0.001, "noise"),  # apart, and too little to matter
        (1.15, 0.01, "slower"),
    ],
)
def test_a_change_counts_where_it_is_more_than_noise(results, factor, spread, said):
    text = change.changes(moved(results, 1.0, spread), moved(results, factor, spread))
    (line,) = [one for one in text.splitlines() if "/65536/" in one]
    assert f"{100 * (factor - 1):+.0f}%" in line
    assert said in line
    assert f"{2e-3 / (65536 / 1e9):.3g}" in line  # eager's ratio before
    assert f"{2e-3 / (factor * 65536 / 1e9):.3g}" in line


def test_runs_of_two_machines_are_compared_by_ratios_alone(results):
    other = dict(results, machine=results["machine"] | {"cpu": "Another"})
    text = change.changes(other, moved(results, 1.5))
    assert "only ratios compare" in text
    assert "%" not in text
    busy = results["machine"] | {"load average at start": 9.0}
    for pair in ((results, dict(results, machine=busy)), (dict(results, machine=busy), results)):
        text = change.changes(*pair)
        assert "others were using the machine" in text and "verdict" not in text
    quiet = dict(results, machine=results["machine"] | {"load average at start": 0.1})
    assert "others were using" not in change.changes(quiet, quiet)


def test_the_number_of_rows_that_both_runs_have_is_told(results):
    fewer = dict(results, rows=results["rows"][:1])
    assert f"1 of {len(results['rows'])} rows are in both" in change.changes(fewer, results)
    assert "rows are in both" not in change.changes(results, fewer)


def test_runs_without_a_row_in_common_are_refused(results):
    with pytest.raises(ValueError, match="no row in common"):
        change.changes(dict(results, rows=[]), results)


def test_csv_has_every_contender_with_a_time(results):
    head, *lines = table.rows_csv(results).splitlines()
    assert head.startswith("op,pass,shape,dtype,target,contender,seconds,low,high")
    assert len(lines) == 3 + 7
    (eager,) = [line.split(",") for line in lines if "1048576,float32,,eager," in line]
    assert eager[:6] == ["bernoulli_nll", "both", "1048576", "float32", "", "eager"]
    assert [float(cell) for cell in eager[6:]] == pytest.approx(
        [0.01, 0.009, 0.011, 9, 3, 12582912]
    )
