"""The coordinator with workers that answer at once: what is asked, refused, repeated, stopped, failed and resumed."""

import errno
import json
import random
import shutil
from io import StringIO

import optuna
import pytest
from at_once import AtOnce
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

from nas.analysis import reference_lines
from nas.errors import InputError
from nas.failures import Diverged, Lost
from nas.report.live.progress import Progress
from nas.runs.directory import RunDirectory, open_run
from nas.runs.ledger import Ledger
from nas.seeds import trial_seed
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.study import run as study
from nas.study.candidates import Candidates
from nas.study.proposer import Reference
from nas.study.workload import Variant
from nas.trial import line_scores
from nas.trial import rung as trial
from nas.trial.checks import check
from nas.trial.clock import pace, timing
from nas.trial.clock.pace import Pace

STUDY = """
name: small
space: mobilediffusion
dataset: emoji
budget: {params: 400M, macs: 200G}
search: {sampler: random, trials: 6, minimise: [fid_efficientnet_lite0, macs]}
stopping: {rule: halving, rungs: [0.5, 1.0], min_peers: 3}
tracking: {mode: "off"}
"""


LINES = {"untrained": {"told": "nothing", "scores": {"fid_efficientnet_lite0": 200.0}, "cost": {"macs": 5.0}}}


PACE = Pace(0.5, 1.0, 0.001, 0.01, 0.02, 2.0, 2048)  # seconds


class Workers(AtOnce):
    """A made-up score for every job; `fail` maps trial numbers to exceptions, taken one by one."""

    fail: dict[int, list[Exception]] = {}
    ran: list[tuple[int, int]] = []

    def compute(self, tag, function, *arguments):
        if function is trial.prepare:
            return {"fid_efficientnet_lite0": {"unit": "", "higher_is_better": False}}, ["a", "b"]
        if self.fail.get(tag[0]):
            raise self.fail[tag[0]].pop(0)
        if function is line_scores.measure:
            return LINES
        if function is timing.clock:
            return PACE
        self.ran.append(tag)
        return rung_of(arguments[0])


def rung_of(job):
    score = 100.0 + len(json.dumps(job.architecture)) % 50 - 10 * job.rung
    rung = {
        "rung": job.rung,
        "images_seen": job.images_seen,
        "metrics": {"fid_efficientnet_lite0": score, "denoising_loss": score / 1000},
        "timings": {"train_s": 1.0},
        "images_per_s": 10.0,
        "peak_memory_mib": 1.0,
    }
    return {"rung": rung, "proxy": job.architecture, "proxy_cost": {"params": 1, "macs": 2}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs the study (with overrides) in one directory and returns its records and the Optuna study."""
    monkeypatch.setattr(study, "Workers", Workers)
    monkeypatch.setattr(Workers, "fail", {})
    monkeypatch.setattr(Workers, "ran", [])
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)

    def execute(*overrides):
        loaded = study_file.load(path, overrides)
        directory, _ = open_run(loaded, tmp_path / "runs")
        proposer = Candidates(loaded, SearchSpace.load(loaded.space))
        running = study.Run(loaded, proposer, directory, Progress(Console(file=StringIO())))
        running.execute()
        return running

    return execute


def trained(running):
    return [r for r in running.records.values() if r["state"] not in ("over_budget", "duplicate")]


def test_trains_what_was_asked_and_refuses_what_is_over_budget_without_training(run):
    running = run()
    assert len(trained(running)) == 6
    refused = [r for r in running.records.values() if r["state"] == "over_budget"]
    assert refused
    for record in refused:
        assert record["rungs"] == []
        assert record["cost"]["params"] > 4e8 or record["cost"]["macs"] > 2e11
        assert record["reason"]
    assert not {r["trial"] for r in refused} & {tag[0] for tag in Workers.ran}
    assert all(r["cost"]["params"] <= 4e8 and r["cost"]["macs"] <= 2e11 for r in trained(running))


def test_a_run_that_goes_on_first_tracks_what_was_concluded_before(run, monkeypatch):
    before = list(run().records)
    given = []
    monkeypatch.setattr(study.Tracker, "catch_up", lambda self, records: given.append([r["trial"] for r in records]))
    running = run("search.trials=7")
    assert given == [before] and len(running.records) > len(before)


def test_refusals_reach_the_sampler_as_constraints(run):
    running = run()
    told = {t.number: t for t in running.ledger.optuna.get_trials()}
    for number, record in running.records.items():
        violated = any(value > 0 for value in told[number].constraints.values())
        assert violated == (record["state"] == "over_budget")
        assert told[number].state.is_finished()


def test_a_checkpoint_goes_once_the_last_record_is_kept_and_not_before(run, tmp_path, monkeypatch):
    """A run that ends between the two trains nothing again."""
    monkeypatch.setattr(Workers, "compute", leaving_checkpoints(Workers.compute))
    save, full = Ledger.save, []

    def fail(self, record):
        if record["state"] == "complete" and not full:
            full.append(record["trial"])
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, record)

    monkeypatch.setattr(Ledger, "save", fail)
    with pytest.raises(OSError, match="No space"):
        run("stopping.rule=none")
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert (folder / "trials" / f"{full[0]:04d}" / trial.CHECKPOINT).exists()
    running = run("stopping.rule=none")
    assert len(trained(running)) == 6 and not list(folder.glob(f"trials/*/{trial.CHECKPOINT}"))


def leaving_checkpoints(compute):
    def left(self, tag, function, *arguments):
        found = compute(self, tag, function, *arguments)
        if function is trial.run_rung:
            arguments[0].folder.mkdir(exist_ok=True)
            (arguments[0].folder / trial.CHECKPOINT).touch()
        return found

    return left


def test_every_trial_has_another_architecture(run):
    keys = [record["key"] for record in trained(run())]
    assert len(set(keys)) == len(keys)


def test_stopped_trials_never_reach_the_next_rung(run):
    running = run("search.trials=12", "stopping.rule=halving", "stopping.keep=0.34")
    states = [r["state"] for r in trained(running)]
    assert "stopped" in states and "complete" in states
    assert all(len(r["rungs"]) == (2 if r["state"] == "complete" else 1) for r in trained(running))


PAIRS = [
    ("random", "none"),
    ("tpe", "slope"),
    ("tpe", "improvement"),
    ("nsga2", "median"),
    ("nsga2", "slope"),
    ("gp", "halving"),
    ("gp", "median"),
]


@pytest.mark.parametrize(("sampler", "rule"), PAIRS)
def test_every_rule_and_every_sampler_works(run, sampler, rule):
    running = run(f"search.sampler={sampler}", f"stopping.rule={rule}", "stopping.rungs=[0,0.5,1]", "search.trials=10")
    states = [r["state"] for r in trained(running)]
    assert len(states) == 10 and set(states) <= {"complete", "stopped"} and "complete" in states
    assert rule != "none" or "stopped" not in states
    assert all(
        rule in ("halving", "improvement", "none") or "slowly" in r["reason"] or "worse" in r["reason"]
        for r in stopped(running)
    )


def stopped(running):
    return [record for record in trained(running) if record["state"] == "stopped"]


def test_a_diverged_trial_is_recorded_with_its_reason_and_the_study_goes_on(run):
    before = run()
    first = min(r["trial"] for r in trained(before))
    shutil.rmtree(before.directory.path)
    Workers.fail = {first: [Diverged("the loss is nan after 640 images")]}
    running = run()
    assert running.records[first]["state"] == "failed"
    assert running.records[first]["reason"] == "the loss is nan after 640 images"
    assert running.ledger.optuna.get_trials()[first].state == optuna.trial.TrialState.FAIL
    assert len(trained(running)) == 6
    assert sum(r["state"] == "failed" for r in trained(running)) == 1


def test_a_dead_worker_is_tried_again_and_then_given_up(run):
    Workers.fail = {n: [Lost("exit code 1")] * 2 for n in range(200)}
    running = run()
    assert all(r["state"] != "failed" for r in trained(running))
    Workers.fail = {n: [Lost("exit code 1")] * 3 for n in range(200)}
    running = run("search.trials=8")
    new = [r for r in trained(running) if r["state"] == "failed"]
    assert len(new) == 2 and all("died 3 times" in r["reason"] and "exit code 1" in r["reason"] for r in new)


def test_lines_of_reference_are_scored_once_beside_the_trials(run, monkeypatch):
    monkeypatch.setattr(Workers, "fail", {-2: [Lost("gone"), Lost("gone")]})
    running = run()
    found = reference_lines.read(running.directory.path)
    assert found["untrained"]["fid_efficientnet_lite0"] == 200.0 and found["untrained"]["macs"] == 5.0
    assert found["untrained"]["clip_score"] is None
    assert len(trained(running)) == 6
    monkeypatch.setattr(Workers, "fail", {-2: [AssertionError("scored again")]})
    assert len(trained(run("search.trials=7"))) == 7


def test_a_run_whose_lines_cannot_be_scored_has_its_trials(run, monkeypatch):
    monkeypatch.setattr(Workers, "fail", {-2: [Lost("gone")] * 3})
    running = run()
    assert len(trained(running)) == 6 and reference_lines.read(running.directory.path) == {}
    assert "no lines of reference: gone" in running.progress.console.file.getvalue()


@pytest.mark.parametrize(("trials", "trained"), [(7, False), (8, True)])
def test_the_base_of_the_space_is_trained_where_it_is_an_eighth_of_the_search_at_most(tmp_path, trials, trained):
    (tmp_path / "study.yaml").write_text(STUDY)
    loaded = study_file.load(tmp_path / "study.yaml", [f"search.trials={trials}"])
    space = SearchSpace.load(loaded.space)
    assert Candidates(loaded, space).reference() == Reference(Variant(space.base), trained)


def test_a_study_says_how_long_it_will_take_before_its_first_trial(run):
    running = run("workers=2", "search.trials=5", "racing.trials=1")
    each, lines = PACE.trial_s(running.study), PACE.lines_s(running.study, trained=False)
    expected = pace.estimate([PACE] * 2, [each] * 6, lines, 2, pace.stopped(running.study))
    text = " ".join(running.progress.console.file.getvalue().split())
    assert " ".join(expected.told().split()) in text and text.index("to go: 6 trials") < text.index(" start ")
    ended = sum(record["state"] in ("complete", "stopped") for record in running.records.values())
    more = run("workers=2", "search.trials=8", "racing.trials=1").progress.console.file.getvalue()
    assert f"to go: {9 - ended} trials of" in more


def test_more_trials_continue_the_same_run(run):
    before = run()
    Workers.ran.clear()
    after = run("search.trials=9")
    assert after.directory.path == before.directory.path
    assert len(trained(after)) == 9
    assert not {tag[0] for tag in Workers.ran} & set(before.records)


def test_after_repeats_more_trials_still_continue_the_same_run(run):
    before = run("racing.trials=2")
    assert sum(bool(record.get("race")) for record in before.records.values()) == 2
    after = run("search.trials=7")  # fewer than six and two, more than six
    assert after.directory.path == before.directory.path
    assert len([record for record in trained(after) if not record.get("race")]) == 7


def test_an_interrupted_trial_goes_on_from_its_last_rung(run, monkeypatch):
    real = Workers.submit

    def interrupt(self, tag, function, *arguments):
        if tag[1] == 1:
            raise KeyboardInterrupt
        real(self, tag, function, *arguments)

    monkeypatch.setattr(Workers, "submit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(Workers, "submit", real)
    first_rungs = {tag[0] for tag in Workers.ran if tag[1] == 0}
    Workers.ran.clear()
    running = run()
    assert len(trained(running)) == 6
    assert all(r["state"] in ("complete", "stopped") for r in trained(running))
    assert not any(tag == (number, 0) for number in first_rungs for tag in Workers.ran)


def test_the_journal_and_the_records_agree(run):
    running = run()
    backend = JournalStorage(JournalFileBackend(str(running.directory.path / "journal.log")))
    loaded = optuna.load_study(study_name="small", storage=backend)
    on_disk = RunDirectory(running.directory.path).records()
    for told in loaded.get_trials():
        record = on_disk[told.number]
        if record["state"] == "complete":
            scores = record["rungs"][-1]["metrics"]
            assert told.values == [scores["fid_efficientnet_lite0"], record["cost"]["macs"]]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("budget.params=1M", ["budget", "params", "least seen"]),
        ("budget.parms=1M", ["budget", "parms", "did you mean 'params'"]),
        ("search.minimise=[fid]", ["search.minimise", "'fid'", "fid_efficientnet_lite0"]),
        ("training.init=nothing.safetensors", ["training.init", "nothing.safetensors"]),
        ("objective=ufogen", ["objective: ufogen starts from a trained network", "training.init is scratch"]),
        ("training.lora={rank: 4}", ["training.lora", "never trained", "training.init is scratch"]),
        ("training={init: supernet, lora: {targets: attention}}", ["training.lora.targets", "'attention'"]),
        ("training.lora={targets: to_(q}", ["training.lora.targets", "expected a regular expression", "'to_(q'"]),
        ("objective={name: ufogen, recon: ema}", ["objective.recon", "expected one of", "reconstruction"]),
        ("objective={name: ufogen, reconstruction: ema}", ["objective.reconstruction", "'ema_distill'", "'ema'"]),
        ("sampling={solver: one_step, steps: 4}", ["sampling", "one_step has 1 step, got 4"]),
        ("space=vae_decoder", ["vae_decoder", "decoders"]),
        ("space=mobildiffusion", ["mobildiffusion", "mobilediffusion"]),
        ("proxy.width_divisor=3", ["proxy.width_divisor", "mobilediffusion", "not divisible", "width_divisor=3"]),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, override, words):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    with pytest.raises(InputError) as error:
        loaded = study_file.load(path, [override])
        check.check(loaded, SearchSpace.load(loaded.space))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_study_of_one_step_generators_is_accepted(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    options = ["objective={name: ufogen, reconstruction: distill}", "sampling={solver: one_step}"]
    loaded = study_file.load(path, [*options, "training={init: supernet, lora: {rank: 4}}"])
    check.check(loaded, SearchSpace.load(loaded.space))
    resolved = loaded.resolved()
    assert resolved["sampling"] == {"solver": "one_step", "steps": 1, "guidance": 1.0}
    assert resolved["training"]["lora"] == {"rank": 4, "alpha": None, "targets": ".*"}


def test_repeats_train_again_with_another_seed(run, monkeypatch):
    one = SearchSpace.load("mobilediffusion")
    choices = one.sample(random.Random(4))
    monkeypatch.setattr(SearchSpace, "suggest", lambda self, trial: choices)
    monkeypatch.setattr(SearchSpace, "sample", lambda self, rng: choices)
    running = run("search.repeats=1", "search.max_refusals=40", "budget={}")
    records = trained(running)
    assert [r["repeat"] for r in records] == [0, 1]
    assert len({r["seed"] for r in records}) == 2
    assert any(r["state"] == "duplicate" for r in running.records.values())


def test_seeds_depend_on_architecture_and_repeat_only():
    assert trial_seed(0, "a", 0) == trial_seed(0, "a", 0)
    assert len({trial_seed(s, k, r) for s in (0, 1) for k in "ab" for r in (0, 1)}) == 8
