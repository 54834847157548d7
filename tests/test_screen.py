"""Whole spaces by look-up: the same costs as the closed form, the same members as enumeration."""

import math
import random

import numpy as np
import pytest
import torch
from test_space import MD, SPACES
from typer.testing import CliRunner

from nas.cli import app
from nas.commands import grid
from nas.cost import traced
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.space import cost_tables, screen

BUDGET = {"params": 400e6, "macs": 200e9}


def assert_traced_costs_are_closed_form(space, size, members):
    rng = random.Random(size)
    for _ in range(members):
        config = space.architecture(space.sample(rng))
        with torch.device("meta"):
            network = config.build()
            inputs = (torch.empty(1, config.latent_channels, size, size),)
            if space.family[0] == "backbones":
                text = Text(torch.empty(1, 77, config.text_width), torch.empty(1, config.pooled_width or 1))
                inputs = (*inputs, torch.empty(1), text)
        closed = config.cost(size, 77)
        assert closed.params == sum(p.numel() for p in network.parameters())
        assert closed.macs == traced.second_opinion(network, *inputs)


@pytest.mark.parametrize("name", SPACES)
def test_closed_form_of_a_member(name):
    assert_traced_costs_are_closed_form(SPACES[name], 64 if name == "mobilediffusion" else 32, members=1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 32])
@pytest.mark.parametrize("name", SPACES)
def test_closed_form_of_300_members(name, size):
    assert_traced_costs_are_closed_form(SPACES[name], size, members=300)


@pytest.mark.parametrize("size", [64, 32])
@pytest.mark.parametrize("name", SPACES)
def test_tables_are_the_closed_form(name, size):
    space = SPACES[name]
    columns = cost_tables.draw(space, 2_000, seed=size)
    costs = cost_tables.Tables(space, size, 40).costs(columns)
    for row in range(0, 2_000, 20):
        exact = space.architecture(cost_tables.choices_at(space, columns, row)).cost(size, 40)
        assert {name: costs[name][row] for name in cost_tables.COSTS} == vars(exact)


def test_members_are_the_enumeration():
    columns = cost_tables.members(MD)
    assert len(columns["ffn_ratio"]) == MD.size()
    rows = random.Random(0).sample(range(MD.size()), 500)
    listed = [tuple(cost_tables.choices_at(MD, columns, row).items()) for row in rows]
    assert len(set(listed)) == 500
    codes = np.stack(list(columns.values()), axis=1)
    assert len(np.unique(codes, axis=0)) == MD.size()


def test_drawn_members_are_equally_likely():
    """Members without any bottleneck attention are 1 in 49 or so, not 1 in 4 as when axes are drawn one after another."""
    columns = cost_tables.draw(MD, 100_000, seed=0)
    exact = cost_tables.members(MD)
    for axis in MD.axes:
        for index in range(-1, len(axis.choices)):
            drawn, true = (columns[axis.name] == index).mean(), (exact[axis.name] == index).mean()
            assert abs(drawn - true) < 0.01


def test_share_of_a_sample_has_an_interval_that_holds_the_exact_share(monkeypatch):
    exact = screen.survey(MD, BUDGET)
    monkeypatch.setattr(screen, "ENUMERABLE", 10)
    monkeypatch.setattr(screen, "SAMPLE", 20_000)
    drawn = screen.survey(MD, BUDGET, seed=3)
    share, low, high = drawn.share
    assert exact.exhaustive and not drawn.exhaustive
    assert low < exact.share[0] < high
    assert low < share < high < low + 0.02


def test_screen_lists_the_best_within_budget():
    found = screen.screen(MD, BUDGET, top=10, order="largest", by="params").candidates
    assert len({candidate.key for candidate in found}) == 10
    params = [candidate.cost.params for candidate in found]
    assert params == sorted(params, reverse=True)
    assert all(c.cost.params <= 400e6 and c.cost.macs <= 200e9 for c in found)
    seen = screen.survey(MD, BUDGET)
    assert params[0] == seen.costs["params"][seen.within].max()
    assert all(MD.architecture(c.choices).key == c.key for c in found)


def test_screen_lists_those_nearest_to_the_budget_unless_asked_otherwise():
    found = screen.screen(MD, BUDGET, top=5).candidates
    seen = screen.survey(MD, BUDGET)
    left = np.hypot(1 - seen.costs["params"] / 400e6, 1 - seen.costs["macs"] / 200e9)[seen.within]
    mine = [math.hypot(1 - c.cost.params / 400e6, 1 - c.cost.macs / 200e9) for c in found]
    assert mine == sorted(mine) and mine[0] == pytest.approx(left.min())
    assert mine[-1] <= np.sort(left)[20]  # equal networks are listed once
    with pytest.raises(InputError, match="--order nearest: needs a budget"):
        screen.screen(MD, {})


def test_a_spread_runs_over_the_whole_of_a_cost():
    found = screen.screen(MD, BUDGET, top=5, order="spread", by="macs").candidates
    seen = screen.survey(MD, BUDGET)
    wanted = np.quantile(seen.costs["macs"][seen.within], [0, 0.25, 0.5, 0.75, 1])
    assert [c.cost.macs for c in found] == pytest.approx(wanted.tolist(), rel=0.01)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_table_fits_the_terminal(width):
    found = screen.screen(MD, BUDGET, top=5).candidates
    headings, cells, _ = screen.candidate_grid(MD, found)
    lines = grid.laid_out(headings, cells, width)
    assert max(map(len, lines)) <= width
    assert sorted(" ".join(lines).split()) == sorted(" ".join([*headings, *(" ".join(row) for row in cells)]).split())
    assert grid.laid_out(headings, cells)[1].startswith(found[0].key)


def test_a_table_of_many_columns_becomes_several():
    headings = ["signal", *(f"column {place}" for place in range(6))]
    cells = [["warm", *(f"{place}.25" for place in range(6))], ["cold", *["-"] * 6]]
    lines = grid.laid_out(headings, cells, 40)
    assert max(map(len, lines)) <= 40
    assert [line.split()[0] for line in lines if line] == ["signal", "warm", "cold"] * 2


def test_impossible_budget_says_the_cheapest():
    with pytest.raises(InputError, match=r"none of its 94,000 members meets it; the least found is params 68.5 M"):
        screen.screen(MD, {"params": 1e6})


@pytest.mark.parametrize(
    ("text", "message"),
    [("parms=4M", "did you mean 'params'"), ("params=many", "expected a limit such as params=400M")],
)
def test_a_budget_that_is_none(text, message):
    with pytest.raises(InputError, match=message):
        screen.limits(text)


def test_budget_on_the_command_line():
    assert screen.limits("params=400M,macs=200G") == BUDGET


def test_space_verb_prints_and_draws(tmp_path):
    picture = tmp_path / "space.png"
    result = CliRunner().invoke(app, ["space", "mobilediffusion", "--picture", str(picture)])
    assert result.exit_code == 0, result.exception
    assert "94,000 networks" in result.stdout and "58.8 %" in result.stdout
    assert picture.stat().st_size > 10_000


def test_screen_verb_lists():
    result = CliRunner().invoke(app, ["screen", "mobilediffusion", "--top", "3", "--by", "params"])
    assert result.exit_code == 0, result.exception
    first, *table = result.stdout.split("\n\n")[0].splitlines()
    assert first.startswith("3 of 55,315 networks within params <= 400.0 M and macs <= 200.0 G, smallest params first")
    assert len(table) == 4
    assert "the same in all: " in result.stdout
