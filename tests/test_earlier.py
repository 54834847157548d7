"""What a search knows of earlier runs."""

import json
import shutil
from io import StringIO
from types import SimpleNamespace

import free_study
import optuna
import pytest
import test_pool
from at_once import AtOnce
from free_study import coordinate, free
from rich.console import Console

from nas.analysis import findings, results
from nas.errors import InputError
from nas.report import sections
from nas.report.live.progress import Progress
from nas.runs import earlier as kept_runs
from nas.runs import looks
from nas.runs.directory import open_run
from nas.search import samplers
from nas.settings import study_file, study_in_code
from nas.space.search_space import SearchSpace
from nas.study import launch
from nas.study.pool import Pool
from nas.study.run import Run
from nas.trial.given import earlier

STUDY = free_study.search("warm", "tpe", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("warm")
    (path / "study.yaml").write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def first(folder):
    """A run of six trials."""
    run = warmed(folder, folder / "first")
    run.directory.write_json("captions.json", ["a", "b"])
    return run.directory.path


def study(folder, run, *overrides):
    return study_file.load(folder / "study.yaml", [f"search.from=['{run}']", *overrides])


class Free(AtOnce):
    """The free objective, in this process."""

    def compute(self, tag, function, *arguments):
        function, *arguments = free(function, arguments)
        return function(*arguments)


def warmed(folder, root, *overrides):
    """The study run, or gone on with."""
    return coordinate(folder / "study.yaml", root, make=Free, overrides=overrides)


def complete(run):
    return [record for record in results.records(run) if record["state"] == "complete"]


class Asked:
    """What a search looked like to Optuna whenever its sampler was asked; what would come next is asked of a study of its own."""

    def __init__(self, monkeypatch):
        self.known = []
        ask = optuna.Study.ask
        monkeypatch.setattr(optuna.Study, "ask", lambda own, *given: (self.note(own), ask(own, *given))[1])

    def note(self, own):
        if len(own.directions) > 1:
            self.known.append(own.get_trials(deepcopy=False))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_the_sampler_knows_them_and_they_are_no_trials(folder, first, tmp_path, monkeypatch, sampler):
    asked = Asked(monkeypatch)
    overrides = [f"search.from=['{first}']", "search.trials=3", f"search.sampler={sampler}", "seed=1"]
    done = warmed(folder, tmp_path / "runs", *overrides)
    before, ours = complete(first), complete(done.directory.path)
    assert [record["trial"] for record in done.records.values()] == list(range(len(done.records)))
    assert len(ours) == 3 and len(done.ledger.stored.trials) == len(done.records)
    told = asked.known[0]
    assert [trial.values for trial in told] == [
        [r["rungs"][-1]["metrics"]["fid_efficientnet_lite0"], r["cost"]["macs"]] for r in before
    ]
    assert [trial.params for trial in told] == [
        SearchSpace.load("mobilediffusion").parameters(r["choices"]) for r in before
    ]
    assert all(set(trial.constraints) == {"params", "macs"} for trial in told)
    assert len(results.load(done.directory.path)) == len(done.records)
    told = sections.contents(findings.Run.read(done.directory.path), {}, {})["effort"]
    assert ("6 trials", f"of {first} that the search knew, none of them below") in told


def test_the_first_proposal_is_what_the_sampler_makes_of_them(folder, first, tmp_path):
    """A second study of Optuna's, with these trials and the same seed, asks for the same network."""
    overrides = [f"search.from=['{first}']", "search.trials=1", "seed=1"]
    done = warmed(folder, tmp_path / "runs", *overrides)
    space = SearchSpace.load("mobilediffusion")
    own = optuna.create_study(directions=["minimize"] * 2, sampler=samplers.sampler("tpe", 1, 1, 0))
    for record in complete(first):
        fixed = optuna.trial.FixedTrial(space.parameters(record["choices"]))
        space.suggest(fixed)
        values = [record["rungs"][-1]["metrics"]["fid_efficientnet_lite0"], record["cost"]["macs"]]
        limits = {name: record["cost"][name] / limit - 1 for name, limit in done.study.budget.items()}
        own.add_trial(
            optuna.trial.create_trial(
                values=values, params=fixed.params, distributions=fixed.distributions, constraints=limits
            )
        )
    assert done.records[0]["choices"] == space.suggest(own.ask())


def test_nsga2_breeds_from_them(folder, first):
    """Six of them are more than a generation: what is asked for is bred, not drawn."""
    sampler = samplers.sampler("nsga2", 4, 0, 0)
    bare = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    space = SearchSpace.load("mobilediffusion")
    for record in complete(first):
        fixed = optuna.trial.FixedTrial(space.parameters(record["choices"]))
        space.suggest(fixed)
        bare.add_trial(
            optuna.trial.create_trial(
                values=[1.0, 2.0],
                params=fixed.params,
                distributions=fixed.distributions,
                system_attrs=dict(samplers.FIRST_GENERATION),
            )
        )
    asked = bare.ask()
    space.suggest(asked)
    assert asked.number == 6 and bare.trials[-1].system_attrs["NSGAIISampler:generation"] == 1
    assert {t.number for t in sampler.get_parent_population(bare, 1)} <= set(range(6))


def test_a_run_that_goes_on_knows_what_it_knew(folder, first, tmp_path, monkeypatch):
    copied, root = tmp_path / "copied", tmp_path / "runs"
    shutil.copytree(first, copied)
    given = [f"search.from=['{copied}']", "seed=2", "workers=2"]
    begun = warmed(folder, root, *given, "search.trials=2")
    told = kept_runs.read(begun.directory.path)
    assert [len(run["trials"]) for run in told] == [6] and told[0]["run"] == str(copied)
    shutil.rmtree(copied)
    asked = Asked(monkeypatch)
    done = warmed(folder, root, *given, "search.trials=5")
    assert done.directory.path == begun.directory.path
    assert kept_runs.read(done.directory.path) == told
    assert len(asked.known[0]) == 6 + len(begun.records)
    assert [record["trial"] for record in done.records.values()] == list(range(len(done.records)))
    assert len(complete(done.directory.path)) == 5
    assert len(done.ledger.stored.trials) == len(done.records)
    values = [trial.values for trial in done.ledger.stored.trials if trial.values]
    assert values == [
        [r["rungs"][-1]["metrics"]["fid_efficientnet_lite0"], r["cost"]["macs"]] for r in complete(done.directory.path)
    ]


def test_what_a_killed_run_left_is_put_right(folder, first, tmp_path):
    """A trial that the storage lost, and a damaged record, keep their numbers beside those of the earlier run."""
    root, given = tmp_path / "runs", [f"search.from=['{first}']", "seed=3"]
    path = warmed(folder, root, *given, "search.trials=3").directory.path
    begun = [record["trial"] for record in complete(path)]
    (path / "trials" / f"{begun[0]:04d}" / "record.json").write_text("{}")
    again = warmed(folder, root, *given, "search.trials=3")
    assert again.directory.path == path and [record["trial"] for record in complete(path)] == begun
    (path / "journal.log").unlink()
    done = warmed(folder, root, *given, "search.trials=5")
    assert done.directory.path == path and len(complete(path)) == 5
    assert [record["trial"] for record in done.records.values()] == list(range(len(done.records)))
    assert len(done.ledger.stored.trials) == len(done.records)


def test_a_damaged_copy_is_made_again(folder, first, tmp_path):
    given = [f"search.from=['{first}']", "seed=4", "search.trials=1"]
    begun = warmed(folder, tmp_path, *given)
    told = kept_runs.read(begun.directory.path)
    (begun.directory.path / kept_runs.NAME).write_text('[{"run": 7}]')
    assert findings.Run.read(begun.directory.path).earlier == []
    earlier.kept(begun.study, begun.directory)
    assert kept_runs.read(begun.directory.path) == told


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.images_seen=4096"], "training.images_seen is 16384 there and 4096 here"),
        (["space=mobilediffusion_full"], "space is 'mobilediffusion' there and 'mobilediffusion_full' here"),
        (["evaluation.seed=1"], "evaluation.seed is 0 there and 1 here"),
        (["sampling.steps=3"], "sampling.steps is 25 there and 3 here"),
        (["dataset={name: emoji, image_size: 32}"], "dataset.image_size is 64 there and 32 here"),
        (["search.plan={steps: [2, 4]}"], "search.plan.steps is not given there and [2, 4] here"),
        (["deploy.image_size=256"], "deploy.image_size is 512 there and 256 here"),
        (["base={}"], "base.objective.name is not given there and 'denoising' here"),
    ],
)
def test_a_run_of_other_conditions_is_named_with_what_differs(folder, first, overrides, said):
    with pytest.raises(InputError) as refused:
        earlier.found(study(folder, first, *overrides))
    assert str(refused.value).startswith(f"search.from.0: {first}/resolved.yaml: {said}")
    assert "\n" not in str(refused.value)


def test_what_no_score_depends_on_may_differ(folder, first):
    free = [
        "seed=9",
        "search.trials=40",
        "search.minimise=[macs]",
        "budget.macs=150G",
        "stopping.rungs=[1.0]",
        "workers=3",
    ]
    (known,) = earlier.found(study(folder, first, *free, "metrics=[fid, clip_score, caption_accuracy]"))
    assert [trial["trial"] for trial in known["trials"]] == [record["trial"] for record in complete(first)]
    assert known["looks"] == {} and known["conditions"].keys() == {"fid_efficientnet_lite0"}


def altered(first, tmp_path, change):
    """A copy of the run, with its first record changed."""
    copied = tmp_path / "altered"
    shutil.copytree(first, copied)
    for path in sorted(copied.glob("trials/*/record.json")):
        record = json.loads(path.read_text())
        if record["state"] == "complete":
            record.update(change or {"state": "failed"})
            path.write_text(json.dumps(record))
    return copied


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "{run}: no trial that was trained to the end"),
        ({"choices": {"ffn": 3}}, "trial 1 of {run} is of another space: "),
        (
            {"key": "0123456789ab"},
            "trial 1 of {run} is of another space: in 'mobilediffusion' its choices are another network",
        ),
    ],
)
def test_a_run_without_trials_of_the_space_is_refused(folder, first, tmp_path, change, said):
    run = altered(first, tmp_path, change)
    with pytest.raises(InputError) as refused:
        earlier.found(study(folder, run))
    assert str(refused.value).startswith(f"search.from.0: {said.format(run=run)}") and "\n" not in str(refused.value)


def test_a_trial_without_an_objective_is_refused(folder, first):
    with pytest.raises(InputError, match="^search.from.0: trial 1 of .* has no clip_score, which is an objective$"):
        earlier.found(study(folder, first, "search.maximise=[clip_score]", "metrics=[fid, clip_score]"))


def test_what_is_no_run_is_refused(folder, first, tmp_path):
    with pytest.raises(InputError, match="^search.from.0: nowhere: not a run directory"):
        earlier.found(study(folder, "nowhere"))
    with pytest.raises(InputError) as refused:
        earlier.found(study(folder, first.parent))
    assert str(refused.value) == (
        f"search.from.0: {first.parent} is the folder of a study; expected one of its runs, for example {first}"
    )
    twice = study_file.load(folder / "study.yaml", [f"search.from=['{first}', '{first}']"])
    with pytest.raises(InputError, match="^search.from.1: .* is named twice$"):
        earlier.found(twice)


@pytest.mark.parametrize("sampler", ["random", "evolution"])
def test_a_sampler_that_learns_nothing_takes_none(folder, first, sampler):
    given = [f"search.sampler={sampler}", "search.evolution={target: 0.5}"][: 1 + (sampler == "evolution")]
    with pytest.raises(InputError, match=f"--set search.from: sampler {sampler} learns nothing; expected one of: tpe,"):
        study(folder, first, *given)


def test_the_command_refuses_before_it_writes(folder, first, tmp_path):
    overrides = [f"search.from=['{first}']", "sampling.steps=3"]
    with pytest.raises(
        InputError, match="^--set search.from.0: .*resolved.yaml: sampling.steps is 25 there and 3 here"
    ):
        launch.run(folder / "study.yaml", overrides, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_scores_that_were_measured_otherwise_are_refused_once_that_is_known(folder, first, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(first, copied)
    (copied / "conditions.json").write_text('{"fid_efficientnet_lite0": {"unit": "", "references": 64}}')
    given = [f"search.from=['{copied}']", "search.trials=1"]
    with pytest.raises(InputError) as refused:
        warmed(folder, tmp_path / "runs", *given)
    assert str(refused.value) == (
        f"search.from.0: {copied}: conditions.json: fid_efficientnet_lite0: higher_is_better is not given there and False here"
    )


# --- the key ---------------------------------------------------------------------------------------------------------


def test_from_is_written_as_it_is_read_and_left_out_where_it_is_not_given(folder, first):
    with_it = study(folder, first).resolved()["search"]
    assert with_it["from"] == [str(first)] and "from_" not in with_it
    assert "from" not in study_file.load(folder / "study.yaml").resolved()["search"]
    with study_file.opened(study(folder, first)) as (again, _):
        assert again.search.from_ == (str(first),)
    with pytest.raises(InputError, match="unknown key; did you mean 'from'"):
        study_file.load(folder / "study.yaml", ["search.fron=[]"])


def test_help_in_python_names_it():
    assert any(line.startswith("search.from: ") for line in study_in_code.explained(study_in_code.study.Study))


# --- a pool ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pooled(tmp_path):
    """Run the pool of tests/test_pool.py in a folder of this name; what it asked of its workers, and the run."""
    path = tmp_path / "study.yaml"
    path.write_text(test_pool.STUDY)

    def go(name, *overrides):
        engine = type("Engine", (test_pool.MadeUp,), {"jobs": []})
        made = study_file.load(path, overrides)
        directory, _ = open_run(made, tmp_path / name)
        said = StringIO()
        proposer = Pool(made, SearchSpace.load(made.space))
        running = Run(made, proposer, directory, Progress(Console(file=said, width=1000)), engine=engine)
        running.execute()
        return SimpleNamespace(run=running, path=directory.path, jobs=engine.jobs, said=said.getvalue())

    return go


def keys(run_dir):
    return [record["key"] for record in complete(run_dir)]


def test_a_pool_trains_none_of_theirs_again_and_looks_at_none(pooled):
    first = pooled("first")
    second = pooled("second", f"search.from=['{first.path}']", "search.trials=3")
    assert not set(keys(first.path)) & set(keys(second.path)) and len(keys(second.path)) == 3
    before, own = looks.read(first.path), looks.read(second.path)
    assert not before.keys() & own.keys() and len(own) <= 2 * 32  # only MORE of them, where none was worth a training
    assert f"knows 5 finished trials of {first.path}" in second.said
    run = findings.Run.read(second.path)
    forecasts = findings.forecasts(run.looks, run.table, run.goals, run.earlier)
    waiting = [look for key, look in own.items() if key not in keys(second.path)]
    assert len(forecasts) == len(waiting)
    assert forecasts["prompt_accuracy"].tolist() == pytest.approx(
        [w["metrics"]["prompt_accuracy"] + 0.1 for w in waiting]
    )


def test_a_pool_goes_on_from_what_an_earlier_one_knew(pooled):
    """Its first choice is that of one pool that had looked at and trained all of it."""
    first = pooled("first", "search.trials=3")
    warm = pooled("warm", f"search.from=['{first.path}']", "search.trials=1")
    whole = pooled("first", "search.trials=4")
    assert whole.path == first.path and not any(name == "look" for name, _ in [*warm.jobs, *whole.jobs])
    assert keys(warm.path) == keys(whole.path)[3:]


def test_a_pool_looks_first_at_what_others_trained_without_looks(pooled):
    first = pooled("first", "search.sampler=tpe", "search.pool={}")
    second = pooled("second", f"search.from=['{first.path}']", "search.trials=2")
    trained = keys(first.path)
    assert list(looks.read(second.path))[: len(trained)] == trained
    assert not set(trained) & set(keys(second.path))


def test_looks_at_other_numbers_of_pictures_and_what_is_over_budget_are_left_out(pooled):
    first = pooled("first")
    other = pooled("other", f"search.from=['{first.path}']", "search.pool.images=16", "search.trials=1")
    assert list(looks.read(other.path))[:5] == keys(first.path)  # they are looked at again
    tight = pooled("tight", f"search.from=['{first.path}']", "budget.macs=120G", "search.trials=1")
    known = tight.run.proposer
    within = [record for record in complete(first.path) if record["cost"]["macs"] <= 120e9]
    assert set(known._before) == {record["key"] for record in within}
    assert all(look["cost"]["macs"] <= 120e9 for look in looks.read(tight.path).values())


def test_a_pool_that_goes_on_knows_what_it_knew(pooled):
    first = pooled("first")
    given = f"search.from=['{first.path}']"
    begun = pooled("second", given, "search.trials=1")
    done = pooled("second", given, "search.trials=3")
    assert done.path == begun.path and len(keys(done.path)) == 3
    assert keys(done.path) == keys(pooled("whole", given, "search.trials=3").path)
