"""`nas judge`: which questions are asked, sessions over HTTP that are killed and go on, blindness, what cannot be judged."""

import base64
import io
import json
import multiprocessing
import os
import re
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import synthetic_run
from PIL import Image
from served import asked, running
from typer.testing import CliRunner

from nas import loopback
from nas.analysis import findings
from nas.cli import app
from nas.errors import InputError
from nas.judging import contest, page, questions
from nas.judging.questions import Asked
from nas.judging.session import Session
from nas.runs import judgements
from nas.runs.judgements import Judgement

SIX = Asked(tuple(map(str, range(6))), 4)
STATES = ["complete"] * 3 + ["stopped", "complete"]


def answers(asked, count, judge, given=()):
    """What a judge answers who always takes the left one, after the answers that there are."""
    found = list(given)
    for _ in range(count):
        shown = questions.following(asked, found, judge)
        if shown is None:
            break
        found.append(Judgement(judge, "", shown.caption, shown.left, shown.right, "left", 1.0))
    return [one for one in found if one.judge == judge]


@pytest.fixture
def run(tmp_path):
    """A search of four trials trained to the end, 0, 1, 2 and 4, and twelve captions."""
    return synthetic_run.write(tmp_path / "study" / "run", trials=5, states=STATES)


@pytest.fixture
def session(run):
    return Session(contest.of([run]), "ann")


def nas(*words):
    """(what it printed, or its one line) of a command."""
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exception is None or isinstance(found.exception, InputError), found.exception
    return str(found.exception) if found.exception else found.stdout


def tile(url):
    kind, _, content = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


# --- which questions -------------------------------------------------------------------------------------------------


def test_every_pair_is_asked_equally_often_and_every_trial_and_caption():
    given = answers(SIX, 32, "ann")
    once = {one.question for one in given}
    assert len(once) == 30 and len(given) == 32  # 2 were asked again
    assert set(Counter(question[1:] for question in once).values()) == {2}
    assert set(Counter(trial for question in once for trial in question[1:]).values()) == {10}
    assert set(Counter(question[0] for question in once).values()) <= {6, 7, 8, 9}


def test_all_questions_are_asked_until_none_is_left():
    given = answers(SIX, 1000, "ann")
    assert len({one.question for one in given}) == 15 * 4 and questions.following(SIX, given, "ann") is None


def test_a_question_comes_again_later_with_the_sides_changed():
    given = answers(SIX, 40, "ann")
    places = {}
    for place, one in enumerate(given):
        places.setdefault(one.question, []).append(place)
    again = [found for found in places.values() if len(found) > 1]
    assert [second for _, second in again] == [19, 29, 39]
    assert all(second - first >= questions.LAG for first, second in again)
    assert all((given[one].left, given[one].right) == (given[two].right, given[two].left) for one, two in again)


def test_an_order_is_the_judges_own_and_the_same_each_time():
    ann, ben = answers(SIX, 20, "ann"), answers(SIX, 20, "ben")
    assert ann == answers(SIX, 20, "ann") and [one.question for one in ann] != [one.question for one in ben]
    many = Asked(tuple(map(str, range(20))), 8)
    left = np.mean([one.left < one.right for one in answers(many, 120, "ann")])
    assert 0.35 < left < 0.65


def test_judges_have_questions_in_common_however_many_there_are():
    many = Asked(tuple(map(str, range(40))), 32)
    ann = answers(many, 60, "ann")
    ben = answers(many, 60, "ben", ann)
    common = {one.question for one in ann} & {one.question for one in ben}
    assert 18 <= len(common) < 30


def test_trials_that_came_later_are_caught_up_on():
    given = answers(Asked(SIX.trials[:4], 4), 24, "ann")
    more = answers(SIX, 20, "ann", given)[24:]
    assert all({"4", "5"} & {one.left, one.right} for one in more if one.question not in {g.question for g in given})


# --- the page --------------------------------------------------------------------------------------------------------


def answering(run, judge, count):
    own = Session(contest.of([run]), judge)
    for _ in range(count):
        own.answer(own.question()["number"], "left", 1.0)


def test_several_judges_answer_at_once(run):
    workers = [
        multiprocessing.get_context("fork").Process(target=answering, args=(run, name, 25))
        for name in ("ann", "ben", "cy")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    given = judgements.read(run)
    assert Counter(one.judge for one in given) == {"ann": 25, "ben": 25, "cy": 25}
    assert {one.left for one in given} | {one.right for one in given} == {"0", "1", "2", "4"}


def posted(port, **content):
    status, kind, body = asked(port, "POST", "/answer", json.dumps(content), **{"Content-Type": "application/json"})
    assert kind == "application/json"
    return status, json.loads(body)


def question(port):
    status, _, body = asked(port, path="/question")
    assert status == 200
    return json.loads(body)


@pytest.fixture
def served(session):
    with running(loopback.server("judge", page.site(session), 0, page.THREADS)) as port:
        yield port


def test_pictures_are_those_of_the_trials_that_are_recorded(run, session, served):
    for number in range(6):
        shown = question(served)
        assert shown["number"] == number and shown == question(served)  # reloading asks the same
        status, _ = posted(served, number=number, answer=("left", "tie", "right")[number % 3], seconds=1.5)
        made = judgements.read(run)[-1]
        assert status == 200 and (made.judge, made.seconds) == ("ann", 1.5)
        assert shown["caption"] == synthetic_run.CAPTIONS[made.caption]
        for side, trial in (("left", made.left), ("right", made.right)):
            grid = np.asarray(Image.open(run / "trials" / f"{int(trial):04d}" / "samples.png"))
            top, left = made.caption // 4 * 66, made.caption % 4 * 66
            assert (tile(shown[side]) == grid[top : top + 64, left : left + 64]).all()


def test_nothing_that_a_browser_gets_says_whose_the_pictures_are(run, served):
    """Nothing but the caption, the picture's pixels and two counts."""
    _, _, html = asked(served)
    shown = question(served)
    assert set(shown) == {"number", "pairs", "caption", "left", "right"} and shown["pairs"] == 6
    told = html.decode().partition("</style>")[2] + json.dumps({**shown, "left": "", "right": ""})
    assert not any(word in told for word in ("trial", str(run), run.parent.name, "front", "fid"))
    for side in ("left", "right"):
        picture = Image.open(io.BytesIO(base64.b64decode(shown[side].partition(",")[2])))
        assert picture.size == (64, 64) and not picture.info


def serving(run, said):
    page.serve(Session(contest.of([run]), "ann"), 0, False, said.put)


def test_a_session_goes_on_after_its_process_was_killed(run):
    said = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(target=serving, args=(run, said))
    process.start()
    line = said.get()
    port = int(re.match(r"http://127\.0\.0\.1:([0-9]+)/  ann judges ", line)[1])
    question(port)
    for number in range(5):
        _, shown = posted(port, number=number, answer="left", seconds=1)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    again = Session(contest.of([run]), "ann").question()
    assert again == shown and again["number"] == 5
    assert Session(contest.of([run]), "ben").question()["number"] == 0


def test_undo_asks_the_same_question_again(run, served):
    first = question(served)
    _, second = posted(served, number=0, answer="right", seconds=1)
    assert posted(served, number=1, answer="undo") == (200, first)
    assert judgements.read(run) == [] and posted(served, number=0, answer="undo")[1] == first  # there is none before it
    assert posted(served, number=0, answer="left", seconds=1)[1] == second


def test_a_key_that_comes_twice_is_one_answer(run, served):
    posted(served, number=0, answer="left", seconds=1)
    status, shown = posted(served, number=0, answer="right", seconds=1)
    assert status == 200 and shown["number"] == 1
    assert [one.answer for one in judgements.read(run)] == ["left"]
    posted(served, number=7, answer="left", seconds=1)
    assert len(judgements.read(run)) == 1


def test_an_open_question_stays_whatever_others_answer(run, session, served):
    shown = question(served)
    answering(run, "ben", 12)
    assert question(served) == shown
    posted(served, number=0, answer="left", seconds=1)
    mine = judgements.read(run)[-1]
    assert mine.judge == "ann" and synthetic_run.CAPTIONS[mine.caption] == shown["caption"]


def test_the_end_is_said(tmp_path):
    run = synthetic_run.write(tmp_path / "study" / "run", trials=2, states=["complete"] * 2)
    answering(run, "ann", 40)
    assert Session(contest.of([run]), "ann").question() == {"number": 12, "pairs": 1}


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (
            '{"number": 0, "answer": "up"}',
            "application/json",
            "answer: input should be 'left', 'tie', 'right' or 'undo', got 'up'",
        ),
        ('{"number": -1, "answer": "left"}', "application/json", "number: "),
        ('{"number": 0, "answer": "left", "seconds": -1}', "application/json", "seconds: "),
        ('{"answer": "left"}', "application/json", "number: field required"),
        ("{", "application/json", "/answer: invalid JSON"),
        ('{"number": 0, "answer": "left"}', "text/plain", "/answer: expected JSON"),  # what a stranger's form can send
    ],
)
def test_what_is_no_answer_is_refused(run, served, body, kind, words):
    status, _, content = asked(served, "POST", "/answer", body, **{"Content-Type": kind})
    assert status == 400 and words in json.loads(content)["error"] and not (run / judgements.FILE).exists()


def test_other_addresses_and_other_hosts_are_refused(served):
    assert asked(served, path="/trials/0000/samples.png")[0] == 404 and asked(served, "GET", "/answer")[0] == 404
    assert asked(served, path="/question", Host="evil.example")[0] == 403


# --- what cannot be judged -------------------------------------------------------------------------------------------


def refused(*given, **options):
    with pytest.raises(InputError) as found:
        contest.of(*given, **options)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_what_has_no_run_or_no_pictures(tmp_path, run):
    assert "not a run directory" in refused([tmp_path / "none"])
    bare = synthetic_run.write(tmp_path / "bare" / "run", trials=5, states=STATES, pictures=False)
    assert (
        refused([bare])
        == f"{bare}: no pictures to judge, expected trials/0000/samples.png, which a trial draws when it is scored"
    )
    young = synthetic_run.write(tmp_path / "young" / "run", trials=2, states=["running", "over_budget"])
    assert refused([young]) == f"{young}: no pictures to judge: no trial was trained to the end"
    (run / "captions.json").unlink()
    assert "no captions.json in it" in refused([run])


def test_one_trial_and_numbers_that_are_none(tmp_path, run):
    assert refused([run], "1") == f"{run}: two trials with pictures are needed to judge, got 1"
    assert refused([run], "0,9").startswith("--trials 0,9: no trial '9'")
    assert refused([run, run], "0,1") == "--trials 0,1: expected one run, and no --front"
    (run / "trials" / "0002" / "samples.png").unlink()
    assert "expected trials/0002/samples.png" in refused([run], "1,2")
    assert list(contest.of([run]).pictures) == ["0", "1", "4"]  # unless it was named, it is left out
    assert list(contest.of([run], "1,3").pictures) == ["1", "3"]


def test_runs_of_other_captions(tmp_path, run):
    other = synthetic_run.write(tmp_path / "other" / "run", trials=3, states=["complete"] * 3)
    both = contest.of([run, other])
    assert list(both.pictures) == ["0", "1", "2", "4", "other/run:0", "other/run:1", "other/run:2"] and both.run == run
    changed = [*synthetic_run.CAPTIONS[:3], "a dog", *synthetic_run.CAPTIONS[4:]]
    (other / "captions.json").write_text(json.dumps(changed))
    assert refused([run, other]) == (
        f"{other}: drew other captions than {run}: caption 3 is 'a dog', expected 'cat with tears of joy'"
    )


def test_where_answers_cannot_be_kept(run, monkeypatch):
    """Tests may run as root, who may write anything."""
    monkeypatch.setattr(judgements.os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=f"{run / judgements.FILE}: answers cannot be written there; judge a copy"):
        Session(contest.of([run]), "ann")
    monkeypatch.setattr(
        judgements.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(InputError, match="the answer was not written: No space left on device"):
        judgements.add(run, Judgement("ann", "", 0, "0", "1", "left", 1.0), 0)


def test_two_runs_of_one_name(tmp_path, run):
    copy = synthetic_run.write(tmp_path / "again" / "x" / "run", trials=2, states=["complete"] * 2)
    other = synthetic_run.write(tmp_path / "more" / "x" / "run", trials=2, states=["complete"] * 2)
    assert refused([run, copy, other]).endswith("expected runs of different names")
    assert refused([run, run]).endswith("expected runs of different names")


def test_a_name_that_no_judge_can_have(run):
    for name in ("", "a,b", "x" * 41, "a\nb"):
        with pytest.raises(InputError, match="--judge .*: expected a name"):
            Session(contest.of([run]), name)


def test_bad_options_cost_one_line_and_nothing_is_written(tmp_path, run):
    before = sorted(Path(run).rglob("*"))
    with running(loopback.server("test", page.site(Session(contest.of([run]), "ann")), 0, 1)) as port:
        assert nas("judge", run, "--port", port, "--no-browser").startswith(
            f"judge: cannot listen on 127.0.0.1:{port}: "
        )
    assert nas("judge", run, "--results").endswith("asks a person first")
    for option in (["--judge", "me"], ["--trials", "1"], ["--front"]):
        told = f"{option[0]}: ignored with --results; expected one of the two"
        assert nas("judge", run, "--results", *option) == told
    assert nas("judge", run, run, "--results").startswith("--results: prints what one run's folder keeps, got 2 runs")
    assert nas("judge", run, "--output", "x.csv") == "--output x.csv: expected --results with it"
    assert sorted(Path(run).rglob("*")) == before


def test_the_front_is_judged_with_the_repeats_of_its_members(run):
    """Trial 4 is trial 2 again; they are the cheapest here."""
    for number in (2, 4):
        record = json.loads((run / "trials" / f"{number:04d}" / "record.json").read_text())
        synthetic_run.copy_with(run, number, cost=record["cost"] | {"macs": 1})
    members = findings.Run.read(run).best["trial"].tolist()
    assert 2 in members and 4 not in members and len(members) < 3
    assert set(contest.of([run], front=True).pictures) == {*map(str, members), "4"}


def test_an_ablation_is_judged_by_the_first_repeat_of_every_cell(tmp_path):
    run = synthetic_run.write_cells(tmp_path / "cells" / "run")
    assert list(contest.of([run]).pictures) == ["0", "1"]
