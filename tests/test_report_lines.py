"""How a report spells names and numbers, and its lines of reference."""

import re

import pytest
import synthetic_run
from PIL import Image
from test_report import GOALS, data_of, page_of, without_plotly

from nas import numbers
from nas.analysis import findings, naming, reference_lines, results
from nas.report import figures

# --- names and numbers -----------------------------------------------------------------------------------------------


def test_labels_and_units():
    assert naming.label("fid_efficientnet_lite0") == "FID (efficientnet_lite0)" and naming.label("fid") == "FID"
    assert naming.label("clip_score") == "CLIP score" and naming.label("latency_ms") == "Latency (ms)"
    assert naming.shown("macs", 150_700_000_000) == "150.7" and naming.shown("clip_score", float("nan")) == ""
    assert naming.measured("params", 386_028_616) == "386.0 M parameters"


def test_pairs_put_costs_on_x():
    assert naming.pairs(GOALS) == [
        ("macs", "fid_efficientnet_lite0"),
        ("macs", "clip_score"),
        ("fid_efficientnet_lite0", "clip_score"),
    ]
    assert naming.pairs({"clip_score": "maximise"}) == [("macs", "clip_score")]


def test_budget_far_out_does_not_squeeze_the_data(run_dir):
    points = findings.pareto(results.load(run_dir), GOALS)
    near = figures.draw_pareto(points, "macs", "clip_score", {"macs": 2e11})
    far = figures.draw_pareto(points, "macs", "clip_score", {"macs": 2e13})
    assert len(near.layout.shapes) == 1 and not far.layout.shapes


def test_a_guidance_sweep_is_shown_if_there_is_one(run_dir, made_page):
    assert 'id="guidance"' not in made_page.read_text()
    Image.new("RGB", (30, 20), "blue").save(run_dir / "guidance.png")
    page = page_of(run_dir)
    assert page.index('id="guidance"') < page.index('alt="A distance against a score of captions over guidance scales"')


def test_an_ablations_plot_shows_the_paired_differences_that_decide(tmp_path):
    run = findings.Run.read(synthetic_run.write_cells(tmp_path / "cells"))
    column = "fid_efficientnet_lite0"
    found = figures.draw_differences(run.effects[column]["differences"], run.table, column)
    wide = run.table.pivot(index="repeat", columns="cell", values=column)
    paired = wide["fast"] - wide["reference"]
    assert sorted(found.data[0].x) == pytest.approx(sorted(paired))
    assert list(found.data[1].x) == pytest.approx([paired.mean()])
    assert found.layout.shapes[0].x0 == 0 and found.layout.xaxis.title.text.endswith("less that of reference")
    assert "cells-0" in data_of(page_of(run.path))["figures"]


# --- lines of reference ----------------------------------------------------------------------------------------------


def test_every_front_table_and_grid_shows_the_lines_of_reference(run_dir, made_page):
    before = without_plotly(made_page.read_text())
    assert "Lines of reference" not in before and "untrained" not in before  # an older run has none
    page = page_of(synthetic_run.write_lines(run_dir))
    rest, found = without_plotly(page), data_of(page)["figures"]
    rows = re.findall(r'<tr class="line">(.*?)</tr>', rest, re.DOTALL)
    assert sum("other real" in row for row in rows) == 2  # below the front and below all trials
    base = next(row for row in rows if "base" in row)
    assert ">110.0<" in base and ">120.0<" in base and ">250.0<" in base  # its score, GMACs and parameters
    for name in ("real", "autoencoded", "base", "untrained"):
        assert rest.count(f'class="tile t{name}"') == len(synthetic_run.CAPTIONS)
    notes = [note["text"] for note in found["front-0"]["layout"]["annotations"]]
    assert {"↑ untrained 437.0", "copies"} <= set(notes)
    assert "base" in [trace.get("name") for trace in found["front-0"]["data"]]
    assert len(found["curves-0"]["layout"]["shapes"]) > 0


def test_noise_has_no_winner(run_dir):
    synthetic_run.write_lines(
        run_dir,
        untrained={"fid_efficientnet_lite0": 40.0, "clip_score": 26.0},
        autoencoded={"fid_efficientnet_lite0": 5.0, "clip_score": 60.0},
    )
    rest = without_plotly(page_of(run_dir))
    assert "Nothing was learnt: in no score has a trial come a third of the way" in rest
    assert "FID (efficientnet_lite0) 29.32 (untrained 40.00, copies 5.00)" in rest
    assert "The winner" not in rest and "Why it won" not in rest and "knee is trial" not in rest and "★" not in rest
    assert not findings.Run.read(run_dir).knee


def test_lines_beyond_a_figure_are_told_and_do_not_squeeze_it(run_dir):
    lines = findings.Run.read(synthetic_run.write_lines(run_dir)).lines
    below, near, above = reference_lines.in_sight("fid_efficientnet_lite0", lines, [100.0, 130.0])
    assert [line.name for line, _ in below] == ["real", "held_out", "autoencoded"]
    assert [line.name for line, _ in near] == ["base"] and [line.name for line, _ in above] == ["untrained"]
    told = reference_lines.beyond(below, above, lambda value: f"{value:g}")
    assert told == ["↓ real 21, other real 26, copies 55", "↑ untrained 437"]
    close = [(lines["real"], 21.0), (lines["held_out"], 26.0), (lines["autoencoded"], 55.0)]
    assert reference_lines.together(close, [20.0, 140.0]) == [("real, other real", 21.0), ("copies", 55.0)]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1.888e11, "188.8 G"),
        (211_200_000, "211.2 M"),
        (999_960_000, "1.0 G"),
        (-2.5e12, "-2.5 T"),
        (1758.32, "1,758"),
        (999_000, "999,000"),
        (38.685, "38.69"),
        (0.54362, "0.5436"),
        (0.0, "0"),
    ],
)
def test_a_number_is_spelled_one_way(number, said):
    assert numbers.amount(number) == said


def test_what_is_over_a_limit_reads_so():
    assert numbers.above(408_613_000, 4e8) == "408.6 M > 400.0 M"
    assert numbers.above(400_000_001, 4e8) == "400,000,001 > 400,000,000"
