"""Members ranked by scores that need no training: the order against a count by hand, what is kept, and what is refused."""

import random
from pathlib import Path

import pandas as pd
import pytest
from in_process import nas

from nas.errors import InputError
from nas.trust import anchors, ranking, zero_cost

STUDY = "studies/emoji"


@pytest.fixture
def scored(monkeypatch):
    """Scores are planted: which members were scored, in order."""
    seen = []

    def measure(kind, study, plan, todo, table, cache, count, say):
        for config, seed in todo:
            chance = random.Random(config.key)
            rows = {name: chance.random() for name in zero_cost.NAMES}
            table.add(anchors._rows(study, config, seed, {kind: {"images_seen": 0, **rows}}))
            seen.append(config.key)

    monkeypatch.setattr(anchors, "_measure_kind", measure)
    monkeypatch.setattr(anchors, "prepared", lambda study: {})
    return seen


def test_the_order_is_that_of_ranks_counted_by_hand():
    chance = random.Random(0)
    rows = pd.DataFrame([{name: chance.choice([1.0, 2.0, 3.0]) for name in ranking.SIGNALS} for _ in range(12)])
    rows["key"] = [f"{number:02d}" for number in range(12)]
    by = ("zico", "snip")

    def rank(row):  # how many are better, and half of those that are as good
        places = [1 + (rows[name] > row[name]).sum() + ((rows[name] == row[name]).sum() - 1) / 2 for name in by]
        return sum(places) / len(by)

    found = ranking.ordered(rows, by)
    assert dict(zip(found["key"], found["rank"], strict=True)) == pytest.approx(
        {row["key"]: rank(row) for _, row in rows.iterrows()}
    )
    assert found["rank"].is_monotonic_increasing


def test_members_are_scored_once_and_stand_beside_what_was_measured(scored, tmp_path):
    words = ["zero-cost", STUDY, "--out", str(tmp_path), "--by", "zico"]
    first = nas(*words, "--members", "4", "--top", "2")
    table = pd.read_csv(tmp_path / "ranking.csv")
    assert len(scored) == len(table) == 4 and table["zico"].is_monotonic_decreasing
    assert first.stdout.count(table["key"][0]) == 2 and table["key"][2] not in first.stdout
    assert "grad_norm" in first.stdout and "0.70 [0.45, 0.89]" in first.stdout  # the proxy's measured trust
    again = nas(*words, "--members", "6")
    assert len(scored) == len(set(scored)) == len(pd.read_csv(tmp_path / "ranking.csv")) == 6
    assert "2 of 6 architectures to score" in again.stdout
    nas(*words, "--members", "6")
    assert len(scored) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([STUDY, "--by", "zicoo"], ["--by", "'zicoo'", "did you mean 'zico'"]),
        ([STUDY, "--by", ""], ["--by", "unknown score"]),
        (["studies/deme"], ["study.yaml", "search", "this study has none"]),
        ([STUDY, "--members", "5000"], ["--members 5000", "within budget"]),
    ],
)
def test_what_cannot_be_ranked_is_one_line(scored, tmp_path, words, said):
    with pytest.raises(InputError) as caught:
        ranking.run(Path(words[0]), [], *_given(words[1:]), tmp_path / "out", tmp_path, 1, print)
    assert all(word in str(caught.value) for word in said) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def _given(words):
    """Members and signals."""
    options = dict(zip(words[::2], words[1::2], strict=True))
    return int(options.get("--members", 4)), [name for name in options.get("--by", "zico").split(",") if name]
