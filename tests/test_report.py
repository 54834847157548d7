import base64
import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest
import synthetic_run
import yaml
from PIL import Image
from plotly.offline import get_plotlyjs

from nas.analysis import findings, fronts, importance, results
from nas.errors import InputError
from nas.networks.backbones import presets
from nas.report import details
from nas.report import page as report
from nas.runs import pictures

GOALS = {"fid_efficientnet_lite0": "minimise", "macs": "minimise", "clip_score": "maximise"}


def page_of(run_dir):
    return report.write(run_dir).read_text()


def data_of(page):
    """What the page's script reads: figures, trials, captions."""
    return json.loads(unpacked(re.search(r'<script type="application/gzip">(.*?)</script>', page).group(1)))


def unpacked(text):
    return gzip.decompress(base64.b64decode(text)).decode()


def without_plotly(page):
    return page.replace(report.plotly(), "")


# --- what a section shows --------------------------------------------------------------------------------------------


def test_the_answer_counts_every_trial_once(run_dir):
    table = results.load(run_dir)
    told = findings.answer(table, GOALS, synthetic_run.BUDGET)
    counted = findings.counts(table)
    assert sum(counted[state] for state in results.STATES) == counted["proposed"] == 24
    assert told.startswith("24 architectures were proposed: 2 refused before training as over budget (")
    assert f"{counted['complete']} fully trained" in told and f"{counted['front']} form the front" in told
    assert f"knee is trial {fronts.knee(table, GOALS)}" in told


def test_refusals_name_every_budget_that_was_broken():
    costs = [
        {"macs": 3e11, "params": 1},
        {"macs": 1, "params": 5e8},
        {"macs": 3e11, "params": 5e8},
        {"macs": 3e11, "params": 1},
    ]
    records = [{"trial": n, "key": str(n), "state": "over_budget", "cost": cost} for n, cost in enumerate(costs)]
    table = results.frame(records, {}, {"macs": "minimise"})
    assert findings.refusals(table, synthetic_run.BUDGET) == {"macs": 2, "params": 1, "params and macs": 1}


def test_pareto_holds_trained_trials_and_marks_the_front(run_dir):
    table = results.load(run_dir)
    points = findings.pareto(table, GOALS)
    assert set(points["state"]) == {"complete", "stopped"}
    assert points[points["on_front"]]["trial"].tolist() == table[table["on_front"]]["trial"].tolist()
    assert points[points["knee"]]["trial"].tolist() == [fronts.knee(table, GOALS)]
    assert "depth " in points["hover"].iloc[0]


def test_hover_is_escaped(run_dir):
    synthetic_run.copy_with(run_dir, 0, choices={"<img>": "<b onclick=1>"})
    hover = findings.pareto(results.load(run_dir), GOALS)["hover"].iloc[0]
    assert "<img>" not in hover and "&lt;b onclick=1&gt;" in hover


def test_members_run_from_cheap_to_expensive(run_dir):
    assert findings.members(results.load(run_dir), GOALS)["macs"].is_monotonic_increasing


def test_axes_apart():
    rows = pd.DataFrame({"arch.a": [1, 2], "arch.b": [3.0, 3.0], "arch.c": [None, None], "macs": [1, 2]})
    assert findings.axes_apart(rows.assign(**{"arch.d": [4, None]})) == (["arch.a", "arch.d"], {"b": "3"})


def test_winner_against_the_best(run_dir):
    table = results.load(run_dir)
    rows = findings.winner(table, GOALS).set_index("column")
    members = table[table["on_front"]]
    assert rows.loc["macs", "best"] == members["macs"].min()
    assert rows.loc["clip_score", "best"] == members["clip_score"].max()


def choice_points(scores_by_value):
    rows = [
        {"axis": "a", "value": value, "order": order, "trial": 10 * order + number, "score": score}
        for order, (value, scores) in enumerate(scores_by_value.items())
        for number, score in enumerate(scores)
    ]
    return pd.DataFrame(rows)


def test_effects_share_is_adjusted_r_squared():
    scores = {"1": [1.0, 2.0, 3.0], "2": [4.0, 6.0, 5.0]}
    found = importance.effects(choice_points(scores))
    within, total = 2.0 + 2.0, float(((np.array([1, 2, 3, 4, 5, 6]) - 3.5) ** 2).sum())
    assert found["share"].iloc[0] == pytest.approx(1 - (within / 4) / (total / 5))
    assert found["mean"].tolist() == [2.0, 5.0] and found["n"].tolist() == [3, 3]


def test_effects_that_explain_all_and_nothing():
    assert importance.effects(choice_points({"1": [1.0, 1.0], "2": [4.0, 4.0]}))["share"].iloc[0] == 1.0
    assert importance.effects(choice_points({"1": [1.0, 4.0], "2": [1.0, 4.0]}))["share"].iloc[0] == 0.0
    assert importance.effects(choice_points({"1": [1.0], "2": [4.0]}))["share"].iloc[0] == 0.0  # too few to tell


def test_scores_by_choice_compare_the_first_rung_of_every_trained_trial(run_dir):
    table, curves = results.load(run_dir), results.curves(results.records(run_dir))
    points = importance.scores_by_choice(table, curves, "clip_score")
    trained = table[table["state"].isin(["complete", "stopped"])]["trial"]
    record = json.loads((run_dir / "trials" / "0002" / "record.json").read_text())
    depth = points[points["axis"] == "depth"].set_index("trial")
    assert sorted(depth.index) == sorted(trained)
    assert depth.loc[2, "score"] == record["rungs"][0]["metrics"]["clip_score"]
    assert depth.loc[2, "value"] == str(record["choices"]["depth"])


def test_many_numeric_values_are_grouped_by_quarters(run_dir):
    for number in range(24):
        synthetic_run.copy_with(run_dir, number, choices={"ratio": 0.1 * number})
    table, curves = results.load(run_dir), results.curves(results.records(run_dir))
    found = importance.effects(importance.scores_by_choice(table, curves, "clip_score"))
    assert len(found) == 4 and found["n"].sum() == len(curves[curves["rung"] == 0])


def test_hypervolume_share_lies_between_nothing_and_the_box(run_dir):
    share = findings.hypervolume(results.load(run_dir), GOALS)["share"]
    assert share.is_monotonic_increasing and 0 < share.iloc[-1] < 1


def test_timings_by_rung(run_dir):
    found = findings.timings(results.curves(results.records(run_dir)))
    assert found["train_s"].tolist() == [4.0, 8.0, 16.0]
    assert found["trials"].tolist() == [17, 12, 12]


# --- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("border", [0, 2])
def test_grid_is_found_by_its_gaps(tmp_path, tile, border):
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 200, (2, 3, tile, tile, 3), dtype=np.uint8)
    step = tile + 2
    canvas = np.full((2 * step - 2 + 2 * border, 3 * step - 2 + 2 * border, 3), 255, dtype=np.uint8)
    for row, column in np.ndindex(2, 3):
        top, left = border + row * step, border + column * step
        canvas[top : top + tile, left : left + tile] = tiles[row, column]
    Image.fromarray(canvas).save(tmp_path / "samples.png")
    grid = pictures.read_grid(tmp_path / "samples.png")
    assert (grid.tile, grid.border, grid.columns, grid.rows) == (tile, border, 3, 2)
    left, top = grid.corner(4)
    np.testing.assert_array_equal(canvas[top : top + tile, left : left + tile], tiles[1, 1])


def test_no_grid(tmp_path):
    assert pictures.read_grid(tmp_path / "samples.png") is None
    Image.new("RGB", (130, 130)).save(tmp_path / "samples.png")
    assert pictures.read_grid(tmp_path / "samples.png") is None


def test_every_member_draws_every_caption(made_page):
    page, table = without_plotly(made_page.read_text()), results.load(made_page.parent)
    shown = 12  # of the winner on the first screen
    assert page.count('class="tile t') == table["on_front"].sum() * len(synthetic_run.CAPTIONS) + shown
    trained = table["state"].isin(["complete", "stopped"]).sum()
    assert page.count("data:image/webp;base64,") == trained  # the others open on a click


def test_members_without_pictures_leave_their_cells_empty(run_dir):
    for path in run_dir.glob("trials/*/samples.png"):
        path.unlink()
    assert 'class="tile t' not in without_plotly(page_of(run_dir))


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere(made_page):
    page = made_page.read_text()
    assert page.count(report.plotly()) == 1 and unpacked(report.plotly()) == get_plotlyjs()
    rest = without_plotly(page)
    assert "http://" not in rest and "https://" not in rest and "@import" not in rest
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", rest)
    assert "default-src 'none'" in rest


def test_captions_reasons_and_names_are_escaped(made_page):
    rest = without_plotly(made_page.read_text())
    assert "<script>alert" not in rest and "&lt;script&gt;alert(&#39;caption&#39;)&lt;/script&gt;" in rest
    assert "<b>bold</b>" not in rest
    assert "parameters &amp; 200 GMACs" in rest


def test_a_front_member_is_a_figure_point_and_a_table_row(made_page):
    page = made_page.read_text()
    found, found_trials = data_of(page)["figures"], data_of(page)["trials"]
    assert [name for name in found if name.startswith("front-")] == ["front-0", "front-1", "front-2"]
    knee = fronts.knee(results.load(made_page.parent), GOALS)
    assert f'<tr data-trial="{knee}" class="knee">' in page
    assert sorted(map(int, found_trials)) == list(range(24))
    assert {"effects-0", "effects-1", "curves-2", "budget-1", "hypervolume-0"} <= set(found)


def test_write_also_writes_the_table(made_page):
    assert made_page.name == "report.html"
    assert len(pd.read_csv(made_page.with_name("results.csv"))) == 24
    assert not list(made_page.parent.glob("*.partial"))


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ([], "0 architectures were proposed: 0 fully trained. No trial was trained to the end"),
        (["over_budget"], "1 architecture was proposed: 1 refused before training as over budget"),
        (["failed", "running", "stopped"], "No trial was trained to the end, so there is no front and no winner."),
        (["complete"], "Trial 0 is as good as any in every objective: FID (efficientnet_lite0)"),
    ],
)
def test_runs_with_little_to_show(tmp_path, states, told):
    run_dir = synthetic_run.write(tmp_path / "run", trials=len(states), states=states)
    assert told in page_of(run_dir)
    assert report.front_png(run_dir, tmp_path / "front.png").is_file()


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "resolved.yaml").write_text("search: {minimise: [macs]}\n")
    assert "0 architectures were proposed" in page_of(tmp_path)


def test_what_trials_cost_by_part_and_resolution_adds_up_to_its_cost(run_dir):
    network = presets()["mobilediffusion"]
    for number in range(24):
        synthetic_run.copy_with(run_dir, number, architecture=network.to_dict())
    path = run_dir / "resolved.yaml"
    deploy = {"image_size": 512, "downsampling": 8, "text_tokens": 77}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "deploy": deploy}))
    found = details.of_run(findings.Run.read(run_dir), {})
    parts = found["trials"][2]["parts"]
    assert sum(macs for _, _, macs in parts) == pytest.approx(network.cost(64, 77).macs / 1e6, rel=1e-4)
    by_side = {side: sum(macs for _, at, macs in parts if at == side) for side in (64, 32, 16)}
    expected = {part.side: 0 for part in network.parts(64, 77)}
    for part in network.parts(64, 77):
        expected[part.side] += part.cost.macs / 1e6
    assert by_side == pytest.approx(expected, rel=1e-4)
    assert [name for name, _, own in found["components"] if own][:2] == ["full conv", "ffn"]


def test_the_report_of_a_long_study_is_small(long_run):
    _, page = long_run
    assert len(without_plotly(page.read_text())) < 4e6 and page.stat().st_size < 6e6


def test_pictures_that_take_too_much_are_compressed_harder_then_left_out(run_dir):
    rng = np.random.default_rng(0)
    for folder in run_dir.glob("trials/*"):
        canvas = rng.integers(0, 255, (262, 262, 3), dtype=np.uint8)
        canvas[64:66], canvas[130:132], canvas[196:198] = 255, 255, 255
        canvas[:, 64:66], canvas[:, 130:132], canvas[:, 196:198] = 255, 255, 255
        Image.fromarray(canvas).save(folder / "samples.png")
    roomy = pictures.album(run_dir, [0, 2], [4], 64, 10**7)
    size = sum(len(grid.url) for grid in (roomy[0], roomy[2]))
    tight = pictures.album(run_dir, [0, 2], [4], 64, size - 1)
    assert list(roomy) == [0, 2, 4] and list(tight) == [0, 2]
    assert len(tight[0].url) < len(roomy[0].url)
    assert list(pictures.album(run_dir, [0, 2], [4], 64, len(tight[0].url) // 2 + 1000)) in ([0], [])
    assert list(pictures.album(run_dir, [0, 2], [4], 1, 10**7)) == [0]


def test_several_runs_share_one_page_and_one_plot_library(run_dir, tmp_path):
    other = synthetic_run.write(tmp_path / "other", trials=6, seed=3)
    page = report.write_together([run_dir, other], tmp_path / "both.html").read_text()
    assert page.count(report.plotly()) == 1
    rest = without_plotly(page)
    ids = re.findall(r'\bid="([^"]+)"', rest)
    assert len(ids) == len(set(ids)) and {"r0-front-0", "r1-front-0"} <= set(ids)
    named = re.findall(r'href="#([^"]+)"', rest)
    assert set(named) <= set(ids)


def test_names_and_questions_are_escaped(run_dir):
    settings = (run_dir / "resolved.yaml").read_text()
    (run_dir / "resolved.yaml").write_text(settings.replace("name: synthetic", "name: <script>alert('name')</script>"))
    rest = without_plotly(page_of(run_dir))
    assert "<script>alert" not in rest and "&lt;script&gt;alert(&#39;name&#39;)" in rest


def test_components_add_up_to_the_network(run_dir):
    from nas.networks.backbones import unet

    config = unet.presets()["mobilediffusion"]
    records = [{"trial": 3, "architecture": config.to_dict()}, {"trial": 5}]
    found = findings.components(records, 64, 77)
    cost = config.cost(64, 77)
    assert set(found["trial"]) == {3}
    assert (found["macs"].sum(), found["params"].sum()) == (cost.macs, cost.params)
    with pytest.raises(InputError, match="trial 4: architecture: levels is empty"):
        findings.components([{"trial": 4, "architecture": {"levels": []}}], 64, 77)


def test_why_names_what_a_better_score_costs(run_dir):
    table = results.load(run_dir)
    rows = findings.winner(table, GOALS).set_index("column")
    members = table[table["on_front"]].set_index("trial")
    knee = fronts.knee(table, GOALS)
    told = " ".join(findings.why(table, GOALS))
    for column in ("fid_efficientnet_lite0", "clip_score"):
        best = int(rows.loc[column, "best_trial"])
        if best != knee:
            assert f"for {members.loc[best, 'macs'] / members.loc[knee, 'macs']:.2f} times the MACs" in told
        low, high = sorted([members[column].min(), members[column].max()])
        share = (members.loc[knee, column] - low) / (high - low)
        assert rows.loc[column, "position"] == pytest.approx(share if GOALS[column] == "minimise" else 1 - share)


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_figures_for_papers(run_dir, suffix):
    written = report.write_figures(run_dir, suffix)
    names = ["front", "hypervolume", "importance", "curves_fid_efficientnet_lite0", "curves_clip_score"]
    assert [path.name for path in written] == [f"{name}.{suffix}" for name in names]
    assert all(path.stat().st_size > 5000 for path in written)


def test_no_figures_of_nothing(tmp_path):
    with pytest.raises(InputError, match="nothing to draw"):
        report.write_figures(synthetic_run.write(tmp_path / "run", trials=0), "png")


def test_front_png_is_readable_in_a_readme(run_dir):
    with Image.open(report.front_png(run_dir, run_dir / "front.png")) as image:
        assert image.width > 1500 and image.height > 500
