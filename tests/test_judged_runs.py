"""What becomes of judgements: a column of results, picks and fronts by it, the report's section; and the keys in a browser."""

import csv
import json

import chromium
import numpy as np
import pandas as pd
import pytest
import synthetic_run
from served import running
from test_judging import nas

import nas as library
from nas import loopback
from nas.analysis import fronts, picking, results
from nas.analysis.findings import Run
from nas.analysis.people import preference
from nas.errors import InputError
from nas.judging import contest, page, questions
from nas.judging.session import Session
from nas.report import page as reporting
from nas.report.chapters import preference as section
from nas.runs import judgements
from nas.runs.judgements import Judgement

TRIALS = 10
COLUMN = preference.COLUMN


def judge(run, name, count, slope, seed=0, column="clip_score"):
    """Answers of somebody who prefers the trial with the higher score; with a slope of 0 at random."""
    rng = np.random.default_rng(seed)
    session = Session(contest.of([run]), name)
    score = results.load(run).set_index("trial")[column]
    spread, given = score.std(), judgements.read(run)
    rows = []
    for _ in range(count):
        asked = questions.following(session.contest.asked, [*given, *rows], name)
        gap = score[int(asked.left)] - score[int(asked.right)]
        answer = "left" if rng.random() < 1 / (1 + np.exp(-slope * gap / spread)) else "right"
        rows.append(Judgement(name, "2026-01-01T10:00:00+00:00", asked.caption, asked.left, asked.right, answer, 2.0))
    with (run / judgements.FILE).open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([judgements.HEAD] * (not given) + [list(vars(row).values()) for row in rows])


def made(folder):
    return synthetic_run.write(
        folder / "study" / "run", trials=TRIALS, states=["complete"] * (TRIALS - 1) + ["stopped"]
    )


@pytest.fixture(scope="module")
def judged_run(tmp_path_factory):
    """A run of nine complete trials that two people judged, who prefer what has a high CLIP score. Not to be changed."""
    run = made(tmp_path_factory.mktemp("judged"))
    judge(run, "ann", 130, slope=6)
    judge(run, "ben", 70, slope=6, seed=1)
    return run


def test_a_run_that_nobody_judged_is_as_it_was(tmp_path):
    run = made(tmp_path)
    table = results.load(run)
    plain = results.frame(
        results.records(run),
        json.loads((run / "conditions.json").read_text()),
        results.objectives(Run.read(run).settings),
    )
    with pytest.raises(
        InputError, match="best:human_preference: nobody has judged this run yet; nas judge asks a person"
    ):
        picking.pick(table, table.attrs["objectives"], "best:human_preference")
    assert COLUMN not in table and table.equals(plain) and section.told(Run.read(run)) is None
    judge(run, "ann", 10, 1)
    after = results.load(run)
    assert after.drop(columns=COLUMN).equals(table)  # nothing that was recorded changes, nor who is on the front


def test_the_column_has_the_scores_of_those_that_were_judged(judged_run):
    table = results.load(judged_run)
    found = preference.fit(preference.choices(judgements.read(judged_run)))
    assert table[COLUMN][: TRIALS - 1].tolist() == pytest.approx(list(found.values)) and np.isnan(
        table[COLUMN][TRIALS - 1]
    )
    assert table.attrs["conditions"][COLUMN] == {"unit": "log odds", "higher_is_better": True}
    back = pd.read_csv(results.write_csv(judged_run))
    assert list(back) == list(table) and list(back).index(COLUMN) == list(back).index("params") - 1
    assert table.corr(method="kendall", numeric_only=True).loc[COLUMN, "clip_score"] > 0.7


def test_it_is_an_objective_of_fronts_and_picks(judged_run):
    table = results.load(judged_run)
    goals = table.attrs["objectives"]
    best = int(table.loc[table[COLUMN].idxmax(), "trial"])
    assert picking.pick(table, goals, f"best:{COLUMN}") == best
    own = {COLUMN: "maximise", "macs": "minimise"}
    assert picking.pick(table, goals, f"knee:{COLUMN},macs") == fronts.knee(table, own)
    front = library.Run(judged_run).front(f"{COLUMN}, macs")
    assert set(front["trial"]) == set(table.loc[fronts.front(table, own), "trial"]) and best in set(front["trial"])
    assert library.Run(judged_run).pick(f"knee:{COLUMN},macs") == fronts.knee(table, own)
    with pytest.raises(InputError, match="pick: knee:human_preferense: no such column.*human_preference"):
        picking.pick(table, goals, "knee:human_preferense")


def test_runs_together_do_not_have_it(judged_run, tmp_path):
    other = made(tmp_path)
    judge(other, "ann", 20, 1)
    together = library.load(judged_run, other)
    assert COLUMN not in together and COLUMN not in together.attrs["conditions"] and len(together) == 2 * TRIALS
    assert COLUMN in library.load(judged_run)


def test_a_committed_study_keeps_it(judged_run, tmp_path):
    settings = {"search": {"minimise": ["macs"]}}
    (tmp_path / "study.yaml").write_text(json.dumps(settings))
    results.load(judged_run).to_csv(tmp_path / "results.csv", index=False)
    table = library.load(tmp_path)
    assert picking.pick(table, {"macs": "minimise"}, f"best:{COLUMN}") == picking.pick(
        results.load(judged_run), {"macs": "minimise"}, f"best:{COLUMN}"
    )


def test_the_report_says_whether_metrics_agree(judged_run, monkeypatch):
    monkeypatch.setattr(reporting, "_figures", lambda run: {})
    text = reporting.article(Run.read(judged_run), "")
    agreeing = "FID (efficientnet_lite0) and CLIP score order them as people do"
    assert text.count(f"200 answers of 2 people on 9 trials tell some apart: {agreeing}.") == 2
    assert (
        "<td>ann and ben</td>" in text
        and "trial 9</td>" not in text.partition('id="people"')[2].partition("</table>")[0]
    )


def test_the_report_says_that_answers_at_random_tell_nothing(tmp_path):
    run = made(tmp_path)
    judge(run, "ann", 150, slope=0)
    told = section.told(Run.read(run))
    assert "do not tell the trials apart" in told["sentence"]
    assert told["sentence"].endswith("So it cannot be told whether the metrics agree.")
    assert {verdict for _, _, verdict in told["metrics"]} == {"cannot be told"}


def test_results_are_printed_and_written(judged_run, tmp_path):
    text = nas("judge", judged_run, "--results", "--output", tmp_path / "people.csv")
    assert "CLIP score order them as people do" in text and f"wrote {tmp_path / 'people_judges.csv'}" in text
    trials = pd.read_csv(tmp_path / "people.csv")
    assert list(trials) == ["trial", COLUMN, "low", "high", "preferred", "comparisons", "won"]
    assert trials[COLUMN].is_monotonic_decreasing and trials["won"].sum() == trials["comparisons"].sum() / 2
    assert (trials["low"] < trials[COLUMN]).all() and (trials[COLUMN] < trials["high"]).all()
    people = pd.read_csv(tmp_path / "people_judges.csv")
    assert people[["judge", "other"]].to_numpy().tolist() == [["ann", "ann"], ["ben", "ben"], ["ann", "ben"]]
    assert people["answers"].tolist()[:2] == [130, 70] and people["both"].min() > 3 and people["alpha"].iloc[2] > 0.2
    assert set(pd.read_csv(tmp_path / "people_metrics.csv")["metric"]) == set(synthetic_run.METRICS)
    assert nas("judge", judged_run, "--results", "--output", tmp_path / "none" / "a.csv").startswith("--output ")


def test_trials_of_two_runs_on_one_scale(tmp_path):
    """The first run keeps the answers; the other is as it was."""
    run, other = made(tmp_path), synthetic_run.write(tmp_path / "more" / "run", trials=2, states=["complete"] * 2)
    session = Session(contest.of([run, other]), "ann")
    for number in range(16):
        session.question()
        assert session.answer(number, "right", 1.0)
    assert not (other / judgements.FILE).exists() and COLUMN not in results.load(other)
    assert results.load(run)[COLUMN].notna().sum() == TRIALS - 1
    assert "more/run:1" in nas("judge", run, "--results")
    assert "more/run:1" in [row[0] for row in section.told(Run.read(run))["trials"]]


@pytest.mark.skipif(chromium.PATH is None, reason="no chromium on this machine")
def test_keys_in_a_browser(tmp_path):
    run = made(tmp_path)
    made_server = loopback.server("judge", page.site(Session(contest.of([run]), "ann")), 0, page.THREADS)
    with running(made_server) as port, chromium.browser(tmp_path / "chromium") as tab:
        tab.resize(1280, 860)
        tab.open(f"http://127.0.0.1:{port}/", "typeof shown === 'object' && shown && !busy")
        for number, key in enumerate(("ArrowLeft", "ArrowDown", "ArrowRight", "Backspace", "ArrowRight"), 1):
            captions = tab.value("document.getElementById('caption').textContent")
            tab.call("Input.dispatchKeyEvent", type="keyDown", key=key)
            tab.call("Input.dispatchKeyEvent", type="keyDown", key=key, autoRepeat=True)
            expected = (1, 2, 3, 2, 3)[number - 1]
            tab.wait(f"!busy && shown.number === {expected}")
            assert captions in synthetic_run.CAPTIONS
        box = tab.value(
            "(b => [b.left + b.width / 2, b.top + b.height / 2])(document.getElementById('left').getBoundingClientRect())"
        )
        tab.click(*box)
        tab.wait("!busy && shown.number === 4")
        assert (
            tab.value("document.documentElement.scrollHeight <= innerHeight")
            and tab.value("left.getBoundingClientRect().width") >= 256
        )
        assert "4 answered" in tab.value("document.getElementById('count').textContent")
    assert [one.answer for one in judgements.read(run)] == ["left", "tie", "right", "left"]
    assert all(one.seconds < 60 for one in judgements.read(run))
