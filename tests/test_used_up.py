"""What a search does where its sampler proposes nothing new: random drawing, going on, giving up."""

import free_study
import pytest
import yaml
from at_once import AtOnce
from free_study import coordinate, free

from nas.runs.records import UNTRAINED
from nas.search.samplers import NumberedRandomSampler
from nas.space.search_space import SearchSpace
from nas.study import candidates
from nas.study import run as study


class Free(AtOnce):
    """Jobs cost nothing and are computed here."""

    def compute(self, tag, function, *arguments):
        function, *arguments = free(function, arguments)
        return function(*arguments)


@pytest.fixture
def run(tmp_path):
    """A function that runs the study (with overrides)."""
    (tmp_path / "study.yaml").write_text(free_study.search("used", "random", 6))
    return lambda *overrides: coordinate(tmp_path / "study.yaml", tmp_path / "runs", make=Free, overrides=overrides)


@pytest.fixture
def two(tmp_path):
    """The override for a space of two members."""
    axes = {"conv_16": {"fields": "levels.2.conv", "choices": ["full", "separable"]}}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({"backbone": "unet", "base": "mobilediffusion", "axes": axes}))
    return f"space={path}"


@pytest.fixture
def nothing_at_random(monkeypatch):
    """Random drawing finds nothing within budget."""
    largest = SearchSpace.load("mobilediffusion").largest()
    monkeypatch.setattr(candidates, "FRESH_TRIES", 3)
    monkeypatch.setattr(SearchSpace, "sample", lambda self, rng: largest)


def trained(running):
    return [record for record in running.records.values() if record["state"] not in UNTRAINED]


def said(running):
    return " ".join(running.progress.console.file.getvalue().split())


def test_a_space_that_is_used_up_is_said_once_and_nothing_more_is_proposed(run, two):
    running = run(two, "search.trials=9", "racing.trials=2", "budget={}")
    assert said(running).count("has been tried") == 1
    raced = [number for number, record in running.records.items() if record.get("race")]
    assert len(trained(running)) == 2 + len(raced) and all(
        number >= len(running.records) - len(raced) for number in raced
    )


def test_a_small_space_is_looked_through_before_it_is_called_used_up(run, two, monkeypatch):
    monkeypatch.setattr(SearchSpace, "sample", lambda self, rng: {"conv_16": "full"})
    monkeypatch.setattr(NumberedRandomSampler, "sample_independent", lambda self, *asked: asked[-1].choices[0])
    assert len(trained(run(two, "search.trials=9", "budget={}"))) == 2


def test_a_sampler_goes_on_where_random_drawing_finds_nothing(run, nothing_at_random):
    running = run("search.trials=2", "budget={params: 100M}")
    assert len(trained(running)) == 2 and len(running.records) > 2 * candidates.PATIENCE
    assert "has been tried" not in said(running)


def test_a_search_gives_up_after_as_many_refusals_as_it_was_told(run, nothing_at_random, monkeypatch):
    monkeypatch.setattr(study.Lease, "renew", lambda self: renewed.append(self))
    renewed = []
    running = run("search.max_refusals=45", "budget={params: 1M}")
    assert len(running.records) == 45 and not trained(running)
    assert len(renewed) >= 45  # however long it takes, no other process may take the run over
    told = "gave up after 45 refused or repeated candidates in a row; none of 3 random ones is new and within budget"
    assert told in said(running)
