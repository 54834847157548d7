"""Which plans a sweep draws by, and its picture."""

from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure

from nas.diffusion.plan import Plan
from nas.errors import InputError
from nas.networks.backbones import mar
from nas.report import sweep_picture
from nas.study import sweep_plans
from nas.study.sweep import Model
from nas.study.sweep_plans import Ways


def test_the_picture_of_many_ways_names_networks_and_steps_apart(tmp_path, monkeypatch):
    """Three networks in five ways: eight lines in the legend, not fifteen, and a mark for each number of steps."""
    ways = [("dpm++", 10), ("one_step", 1), ("dpm++", 2), ("dpm++", 4), ("renoise", 4)]
    rows = [
        {"model": name, "solver": solver, "steps": steps, "guidance": scale, "as_trained": scale == 3.0}
        | {"clip_score": 0.1 * scale + place, "fid": 10.0 / steps + scale}
        for place, name in enumerate(["base", "a=1", "a=2"])
        for solver, steps in ways
        for scale in (1.0, 2.0, 3.0)
    ]
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    table = pd.DataFrame(rows)
    sweep_picture.save(table, ["clip_score", "fid"], tmp_path / "p.png")
    (legend,), (axes,) = figures[0].legends, figures[0].axes
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["base", "a=1", "a=2", "dpm++ 10", "one step", "dpm++ 2", "dpm++ 4", "renoise 4"]
    marks = {line.get_marker() for line in axes.lines}
    assert len(marks) == len({1, 2, 4, 10}) and len(axes.texts) == 3 * 5 * 2
    two = table[table.steps.isin([1, 10])]
    sweep_picture.save(two, ["clip_score", "fid"], tmp_path / "p.png")
    (legend,), (axes,) = figures[1].legends, figures[1].axes
    assert [text.get_text() for text in legend.get_texts()][:2] == ["base, dpm++ 10", "base, one step"]
    assert {line.get_marker() for line in axes.lines} == {"o"} and len(axes.texts) == 3 * 2 * 3


def points_of(ways, scales, models=("base",)):
    """A frame of `curves` with made-up scores."""
    return pd.DataFrame(
        {
            "model": name,
            **way,
            "guidance": scale,
            "as_trained": False,
            "n": 1,
            "clip_score": scale + place,
            "fid": 1.0 * place,
        }
        for name in models
        for place, way in enumerate(ways)
        for scale in scales
    )


def drawn_of(points, path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    sweep_picture.save(points, ["clip_score", "fid"], path)
    (legend,), (axes,) = figures[0].legends, figures[0].axes
    lines = [line for line in axes.lines if len(line.get_xdata()) and not line.get_label().startswith("_")]
    return [text.get_text() for text in legend.get_texts()], [text.get_text() for text in axes.texts], lines


def test_a_legend_of_long_names_stays_on_the_picture(tmp_path, monkeypatch):
    """One below the other, and the picture as much higher."""
    ways = [{"solver": "ddim", "steps": 10, "experts": str([which] * 10)} for which in range(5)]
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    for some in (ways, [way | {"experts": str(way["experts"][1])} for way in ways]):
        sweep_picture.save(points_of(some, [3.0]), ["clip_score", "fid"], tmp_path / "p.png")
    long, short = figures
    assert "experts [4, 4" in long.legends[0].get_texts()[4].get_text() and long.get_figheight() > short.get_figheight()
    for figure in figures:
        figure.canvas.draw()
        assert figure.legends[0].get_window_extent().width < figure.bbox.width


def test_one_score_stands_over_what_varies(tmp_path, monkeypatch):
    """Its points lie at their steps, which nothing needs to repeat beside them."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    points = points_of([{"solver": "ddim", "steps": steps} for steps in (2, 4, 10)], [3.0]).drop(columns="fid")
    sweep_picture.save(points, ["clip_score"], tmp_path / "p.png")
    (axes,) = figures[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Steps", "CLIP score") and not axes.texts
    assert axes.lines[0].get_xydata().tolist() == [[2, 3], [4, 4], [10, 5]]


def test_at_one_scale_a_curve_is_over_steps(tmp_path, monkeypatch):
    """A line for each solver, its points named by their steps, and the solvers by their colour; what is alike is not named."""
    ways = [
        {"solver": solver, "steps": steps, "spacing": "leading"}
        for steps in (10, 2, 4)
        for solver in ("ddim", "heun", "unipc")
    ]
    said, points, lines = drawn_of(points_of(ways, [3.0]), tmp_path / "p.png", monkeypatch)
    assert said == ["ddim", "heun", "unipc"] and points == ["2", "4", "10"] * 3
    assert [len(line.get_xdata()) for line in lines] == [3, 3, 3] and len({line.get_color() for line in lines}) == 3


def test_the_legend_names_what_differs(tmp_path, monkeypatch):
    ways = [
        {"solver": solver, "steps": 4, "spacing": spacing, "guidance_interval": interval}
        for solver in ("ddim", "heun")
        for spacing in ("trailing", "leading")
        for interval in ("[0, 999]", "[200, 799]")
    ]
    said, _, lines = drawn_of(points_of(ways, [1.0, 3.0]), tmp_path / "p.png", monkeypatch)
    assert len(said) == len(lines) == 8 and said[:2] == [
        "ddim 4, trailing, guided at [0, 999]",
        "ddim 4, trailing, guided at [200, 799]",
    ]
    two = [way for way in ways if way["guidance_interval"] == "[0, 999]" and way["solver"] == "ddim"]
    said, _, _ = drawn_of(points_of(two, [1.0, 3.0], ("base", "a=1")), tmp_path / "p.png", monkeypatch)
    assert said == ["base, ddim 4, trailing", "base, ddim 4, leading", "a=1, ddim 4, trailing", "a=1, ddim 4, leading"]
    said, points, lines = drawn_of(points_of(ways, [1.0, 3.0], ("base", "a=1")), tmp_path / "p.png", monkeypatch)
    assert said[:3] == ["base", "a=1", "ddim 4, trailing, guided at [0, 999]"] and len(said) == 10


@pytest.mark.parametrize("text", ["", "x", "1,,2", "-1", "nan", "inf", "1e30", "1001"])
def test_scales_that_are_none(text):
    with pytest.raises(InputError, match="expected numbers from 0 to 1000"):
        sweep_plans.scales_of(text)
    assert sweep_plans.scales_of("3,1000,0,3") == [0, 3, 1000]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "nan", "inf", "1;2"])
def test_scales_that_are_not_numbers(text):
    with pytest.raises(InputError, match="--scales"):
        sweep_plans.scales_of(text)


def test_scales_are_ordered_and_different():
    assert sweep_plans.scales_of("3, 1,3,7.5") == [1.0, 3.0, 7.5]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0", "-1", "1.5", "nan", "1001", "1;2", "99999999999999999999"])
def test_steps_that_are_none(text):
    with pytest.raises(InputError, match="--steps .*: expected whole numbers from 1 to 1000"):
        sweep_plans.steps_of(text)
    assert sweep_plans.steps_of("4, 1,2,4,1000") == [1, 2, 4, 1000]


def test_what_a_plan_becomes_in_other_steps():
    one, two, four = Plan(solver="one_step"), Plan(solver="renoise", steps=2), Plan(solver="renoise", steps=4)
    assert sweep_plans.plans(one, [1, 2, 4]) == ([one, two, four], [])
    assert sweep_plans.plans(four, [1, 2, 4]) == ([four, one, two], [])
    many = Plan(solver="dpm++", steps=10, guidance=2.0)
    few = Plan(solver="dpm++", steps=4, guidance=2.0)
    assert sweep_plans.plans(many, [1, 4, 10]) == ([many, one, few], [])
    assert sweep_plans.plans(many, []) == sweep_plans.plans(many) == ([many, one], [])


def test_values_are_read_as_a_plan_has_them():
    read = sweep_plans.values_of(
        ["guidance_interval=[0, 999],[200, 799]", "solver=dpm++,unipc,dpm++", "guidance=1,2.5"]
    )
    assert read == {
        "guidance_interval": [(0, 999), (200, 799)],
        "solver": ["dpm++", "unipc"],
        "guidance": [1.0, 2.5],
    }
    assert sweep_plans.values_of([]) == {}
    assert sweep_plans.values_of(["experts=[1, 0],[0, 0, 1]"]) == {"experts": [(1, 0), (0, 0, 1)]}
    found, wrong = Ways(values={"experts": [(1, 0), (0, 0, 1)]}).plans(Plan(steps=2))
    assert [plan.experts for plan in found] == [(1, 0)]
    assert wrong == ["experts: 3 of them, and ddim in 2 steps evaluates the network 2 times; expected as many"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["solver"], "--set solver: expected FIELD=VALUE,VALUE"),
        (["step=3"], "--set step=3: a plan of sampling has no 'step'; did you mean 'steps'?"),
        (["steps="], "--set steps=: expected values"),
        (["steps=2,0"], "--set steps=2,0: steps: expected greater than or equal to 1, got 0"),
        (["steps=true"], "--set steps=true: steps: expected"),
        (["steps=[2"], r"--set steps=\[2: "),
        (["solver=ddim", "solver=heun"], "--set solver=heun: solver was given before"),
        (["guidance_interval=200,800"], "guidance_interval: expected two training times"),
        (["guidance_interval=[800, 200]"], "guidance_interval: expected the lower time first"),
        (["spacing=even"], "spacing: expected 'trailing', 'leading' or 'linspace', got 'even'"),
        (["guidance=.nan"], "guidance: "),
    ],
)
def test_values_that_are_none(texts, words):
    with pytest.raises(InputError, match=words) as caught:
        sweep_plans.values_of(texts)
    assert "\n" not in str(caught.value)


def test_what_a_plan_becomes_with_values():
    own = Plan(solver="dpm++", steps=10, guidance=2.0)
    found, wrong = Ways(steps=[4], values={"solver": ["ddim", "heun"]}).plans(own)
    assert wrong == [] and found == [
        Plan(solver=solver, steps=steps, guidance=2.0) for solver in ("ddim", "heun") for steps in (10, 4)
    ]
    found, wrong = Ways([1.0, 2.0], values={"guidance_interval": [(0, 999), (200, 799)]}).plans(own)
    assert wrong == [] and found == [own.changed(guidance=1.0), own, own.changed(guidance_interval=(200, 799))]
    found, wrong = Ways(values={"spacing": ["trailing", "leading"], "steps": [1, 2]}).plans(own)
    assert found == [own.changed(1), own.changed(2), own.changed(2, spacing="leading")] and len(wrong) == 1
    assert Ways().plans(own) == (
        [plan.changed(guidance=s) for plan in sweep_plans.plans(own)[0] for s in sweep_plans.SCALES],
        [],
    )


def test_what_a_plan_becomes():
    assert sweep_plans.plans(Plan(solver="renoise", steps=4)) == ([Plan(solver="renoise", steps=4)], [])
    assert sweep_plans.plans(Plan(steps=4)) == ([Plan(steps=4), Plan(solver="one_step")], [])


@pytest.mark.parametrize(
    ("own", "ways", "left", "said"),
    [
        (Plan(steps=2, experts=(1, 0)), Ways(steps=[4], scales=[3]), 2, "--steps 4: experts: 2 of them, and ddim in 4 steps"),
        (
            Plan(steps=2, cache={"name": "schedule", "network": "0123456789ab", "rows": ["cc", "rr"]}),
            Ways(steps=[1, 3], scales=[3]),
            2,
            "--steps 3: cache: its schedule has 2 rows",
        ),
        (
            Plan(guidance=1, guidance_interval=(0, 500), cache={"name": "fora", "every": 2}),
            Ways(scales=[1, 3]),
            3,
            "--scales 3: cache: what both branches put out",
        ),
    ],
)  # fmt: skip
def test_what_a_plan_cannot_become_is_said_with_the_option_that_asked_and_left_out(own, ways, left, said):
    found, (wrong,) = ways.plans(own)
    assert len(found) == left and wrong.startswith(said)


def test_what_a_network_cannot_be_drawn_by_is_left_out():
    """Indices come token by token, each at once: neither in one step of a denoiser nor in several."""
    network = mar.Config(1, 2, 16, 2, 2, 16, grid=4, latent_channels=1, text_width=6, codes=9)
    own, deploy = Plan(solver="autoregressive", steps=1, guidance=1.0), SimpleNamespace(latent_size=4, text_tokens=5)
    bench = SimpleNamespace(study=SimpleNamespace(sampling=own, deploy=deploy))
    model = Model("fluid", 0, 0, 64, bench, network, lambda: None)
    points, wrong = model.points(Ways([1.0, 2.0], [4]))
    assert [plan for plan, _ in points] == [own, own.changed(guidance=2.0)]
    assert wrong == [
        "solver: one_step denoises numbers, and tokens are indices; expected autoregressive",
        "steps: 4, but a token that is an index is drawn at once; expected 1",
    ]
