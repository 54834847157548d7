"""A new kind of study is a proposer: a fixed list of networks, trained by the same loop, without a subclass of anything."""

from io import StringIO

import pytest
from at_once import InProcess
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial
from rich.console import Console

from nas.analysis import reference_lines
from nas.networks import backbones
from nas.report.live.progress import Progress
from nas.runs.directory import open_run
from nas.settings import design, study_file
from nas.study.proposer import Reference
from nas.study.run import Run
from nas.study.trials import first_record
from nas.study.workload import Variant, Workload
from nas.trial.rung import Job, run_alone

STUDY = """
name: list
space: mobilediffusion
dataset: {name: emoji, limit: 96}
proxy: {width_divisor: 16}
training: {images_seen: 32, batch: 16}
sampling: {steps: 2, guidance: 1.0}
evaluation: {images: 8}
metrics: [clip_score]
search: {minimise: [denoising_loss]}
stopping: {rungs: [0.5, 1.0]}
tracking: {mode: "off"}
workers: 1
"""
SLOW = {"training.learning_rate": 1.0e-6}


def two_levels(width):
    levels = [{"channels": 320, "down": [0], "up": [0]}, {"channels": width, "down": [0], "up": [0]}]
    return backbones.from_dict({"levels": levels}).canonical()


class Listed:
    """Trains a list of variants one after another; the second goes no further than its first rung."""

    like = None

    def __init__(self, study, variants):
        self.study, self.variants = study, variants

    def sampler(self, known):
        return RandomSampler(seed=0)

    def suggested(self, record):
        return FixedTrial(record["choices"])

    def open(self, trials):
        self.trials = trials

    def begin(self, asked):
        variant = self.variants[asked.number]
        record = first_record(self.study, asked.number, {}, variant.architecture)
        record |= {"seed": 7 + asked.number, "settings": variant.settings}
        self.trials.start(record)
        return record

    def workload(self, workers):
        left = range(len(self.trials.records), len(self.variants))
        return Workload(self.variants[left.start :], [place for place, _ in enumerate(left)])

    def reference(self):
        return Reference(self.variants[0])

    def ask(self):
        return self.begin(self.trials.ask()) if len(self.trials.records) < len(self.variants) else None

    def scored(self, record):
        return "second of the list" if record["trial"] == 1 else None


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("listed") / "study.yaml"
    path.write_text(STUDY)
    return study_file.load(path)


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    """A list of three, of which two were trained before the third was added; the run, and what it said each time."""
    variants = [Variant(two_levels(320)), Variant(two_levels(640)), Variant(two_levels(320), SLOW)]
    root, said = tmp_path_factory.mktemp("runs"), []
    for count in (2, 3):
        console = Console(file=StringIO(), width=1000)
        directory, _ = open_run(study, root)
        running = Run(study, Listed(study, variants[:count]), directory, Progress(console), engine=InProcess)
        running.execute()
        said.append(console.file.getvalue())
    return running, variants, said


def test_a_list_is_trained_in_its_order_and_goes_on_when_it_has_grown(finished):
    running, variants, said = finished
    states = [(record["state"], len(record["rungs"]), record["reason"]) for record in running.records.values()]
    assert states == [("complete", 2, ""), ("stopped", 1, "second of the list"), ("complete", 2, "")]
    assert [record["architecture"] for record in running.records.values()] == [
        each.architecture.to_dict() for each in variants
    ]
    assert "to go: 2 trials" in said[0] and "to go: 1 trial " in said[1]
    assert "trial   0 start" in said[0] and "trial   0" not in said[1] and "trial   2 start" in said[1]
    assert set(reference_lines.read(running.directory.path)) >= {"untrained"}


def test_its_scores_are_those_of_the_same_trainings_outside_a_run(finished, study, tmp_path):
    running, variants, _ = finished
    for number, images in ((1, 16), (2, 32)):
        record, variant = running.records[number], variants[number]
        job = Job(number, variant.architecture.to_dict(), 7 + number, 0, images, tmp_path / str(number))
        job.folder.mkdir()
        alone = run_alone(design.changed(study, variant.settings), running.directory.cache, job)
        assert record["rungs"][-1]["images_seen"] == images
        assert record["rungs"][-1]["metrics"] == pytest.approx(alone["rung"]["metrics"], rel=1e-5)


def test_optuna_knows_what_the_records_say(finished):
    running, _, _ = finished
    told = [(each.state.name, each.values) for each in running.ledger.stored.get_trials()]
    losses = {n: record["rungs"][-1]["metrics"]["denoising_loss"] for n, record in running.records.items()}
    assert told == [("COMPLETE", [losses[0]]), ("PRUNED", None), ("COMPLETE", [losses[2]])]
