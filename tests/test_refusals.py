"""What is refused before a run begins: told with file, line, key and value, in one line, and nothing is left on disk."""

import functools
import re

import mutations
import pytest
import yaml

from nas.errors import MOST, InputError
from nas.runs.directory import RunDirectory
from nas.settings import plausible, study_file
from nas.settings.study import Study
from nas.space.search_space import SearchSpace
from nas.study import launch
from nas.trial.checks import check, data_check

STUDY = """\
space: mobilediffusion
dataset: emoji
training: {images_seen: 512}
proxy: {width_divisor: 16}
evaluation: {images: 64}
metrics: [clip_score]
search:
  trials: 4
  minimise: [denoising_loss, macs]
"""
CELLS = """\
architecture: mobilediffusion
dataset: emoji
training: {images_seen: 512}
proxy: {width_divisor: 16}
metrics: [clip_score]
ablation:
  design: one_factor
  factors:
    x:
      levels:
        a: {}
        b: {training.batch: 32}
  maximise: [clip_score]
"""


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    monkeypatch.setattr(check, "PROBES", 20)


@pytest.fixture
def refusal(tmp_path):
    """What `nas run` says of a study, after the name of its file; it must have written nothing."""

    def refuse(text, *overrides):
        path = tmp_path / "mine" / "study.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError) as caught:
            launch.run(path, overrides, tmp_path / "runs")
        assert sorted(tmp_path.rglob("*")) == [path.parent, path]
        message = str(caught.value)
        assert "\n" not in message and len(message) <= len(str(path)) + 10 + MOST
        return message.removeprefix(str(path))

    return refuse


def changed(study, old, new):
    assert study.count(old) == 1
    return study.replace(old, new)


# --- after parsing -----------------------------------------------------------------------------------------------------

AFTER = {  # what stands in a study -> what stands there instead; the marked line is named, and what is said
    "objective": (
        "  minimise: [denoising_loss, macs]",
        "  minimise: [zebra] # here",
        "search.minimise.0: unknown column 'ze",
    ),
    "budget": ("metrics:", "budget: {zebra: 3} # here\nmetrics:", "budget.zebra: unknown column 'zebra'; expected"),
    "unmeetable": ("metrics:", "budget: {params: 1M} # here\nmetrics:", "budget: none of 20 random candidates"),
    "init": (
        "images_seen: 512}",
        "images_seen: 512, init: none} # here",
        "training.init: none: no such file; expected scratch",
    ),
    "long init": ("images_seen: 512}", f"images_seen: 512, init: {'z' * 300}}} # here", "training.init: zzz"),
    "space": (
        "space: mobilediffusion",
        "space: mobildiffusion # here",
        "space: no file search_spaces/mobildiffusion.yaml; did you",
    ),
    "long space": ("space: mobilediffusion", f"space: {'z' * 300} # here", "space: no file search_spaces/zzz"),
    "proxy": ("width_divisor: 16}", "width_divisor: 3} # here", "proxy.width_divisor: a member of space"),
    "downsampling": (
        "metrics:",
        "deploy: {downsampling: 3} # here\nmetrics:",
        "deploy.image_size: expected a multiple of downsampl",
    ),
    "image size": (
        "metrics:",
        "deploy: {image_size: 520} # here\nmetrics:",
        "deploy.image_size: 520 with downsampling 8: latents of side 65",
    ),
    "latencies": (
        "metrics:",
        "deploy: {latency: no.json} # here\nmetrics:",
        "deploy.latency: no.json: not a latency table",
    ),
    "folder": (
        "dataset: emoji",
        "dataset: {name: folder, path: nowhere} # here",
        "dataset.path: nowhere/metadata.jsonl",
    ),
    "shards": (
        "dataset: emoji",
        "dataset: {name: webdataset, path: 'no-{0..2}.tar'} # here",
        "dataset.path: no-0.tar: missing shard, 3 of 3",
    ),
    "annotations": (
        "dataset: emoji",
        "dataset: {name: coco, path: ., annotations: no.json} # here",
        "dataset.annotations: no.json",
    ),
    "size of pictures": (
        "dataset: emoji",
        "dataset: {name: emoji, image_size: 60} # here",
        "dataset.image_size: 60 is not divisible by the",
    ),
    "size of latents": (
        "dataset: emoji",
        "dataset: {name: emoji, image_size: 72} # here",
        "dataset.image_size: 72: latents of side 9",
    ),
    "few pictures": (
        "dataset: emoji\n",
        "dataset: {name: emoji, limit: 20}\n",
        "evaluation.images: 64 captions asked for, but the train split has 20",
    ),
    "autoencoder": (
        "metrics:",
        "autoencoder: {name: kl, path: no.safetensors} # here\nmetrics:",
        "autoencoder.path: no.safetensors",
    ),
    "text encoder": (
        "metrics:",
        "conditioning: {model: ViT-L-15} # here\nmetrics:",
        "conditioning.model: open_clip model 'ViT-L-15'",
    ),
    "judge": (
        "metrics: [clip_score]",
        "metrics:\n- fid\n- {name: clip_score, judge: no} # here",
        "metrics.1.judge: open_clip model 'no'",
    ),
    "weights": (
        "metrics: [clip_score]",
        "metrics: [{name: fid, features: inception, weights: no.pth}] # here",
        "metrics.0.weights: no.pth: no such",
    ),
    "one metric twice": (
        "metrics: [clip_score]",
        "metrics: [clip_score, clip_score] # here",
        "metrics: two of them give the column",
    ),
    "below one batch": (
        "images_seen: 512}",
        "images_seen: 63} # here",
        "training.images_seen: expected at least one batch, 64, got 63",
    ),
}


@pytest.mark.parametrize("case", AFTER)
def test_what_is_found_after_parsing_has_its_line_too(refusal, case):
    old, new, said = AFTER[case]
    text = changed(STUDY, old, new)
    if case == "few pictures":
        text = changed(text, "images: 64}", "images: 64} # here")
    message = refusal(text)
    (line,) = (number for number, each in enumerate(text.splitlines(), 1) if "# here" in each)
    assert message.startswith(f":{line}: {said}"), message


def test_what_a_level_sets_is_told_where_it_stands(refusal):
    bad = changed(CELLS, "b: {training.batch: 32}", "b: {training.batch: 1024}")
    said = (
        ":12: ablation.factors.x.levels.b.training.batch: cell 'x=b': training.images_seen: expected at least one batch"
    )
    assert refusal(changed(bad, "images_seen: 512}", "images_seen: 512, init: base}")).startswith(
        ":3: training.init: cell 'reference': base: the study has no base section"
    )
    with_level = changed(CELLS, "b: {training.batch: 32}", "b: {training.images_seen: 32}")
    assert refusal(with_level).startswith(said.replace("batch: cell", "images_seen: cell"))
    missing = changed(CELLS, "b: {training.batch: 32}", "b: {autoencoder.path: no.safetensors}")
    assert refusal(missing).startswith(
        ":12: ablation.factors.x.levels.b.autoencoder.path: cell 'x=b': autoencoder.path: no."
    )


def test_an_override_is_named_as_what_it_is(refusal):
    assert refusal(STUDY, "search.minimise=[zebra]").startswith("--set search.minimise.0: unknown column 'zebra'")
    assert refusal(STUDY, "dataset={name: emoji, image_size: 60}").startswith("--set dataset.image_size: 60 is not")
    assert refusal(STUDY, "deploy.image_size=520").startswith("--set deploy.image_size: 520 with downsampling 8")


def test_long_values_are_cut(refusal):
    for value in ("z" * 20_000, "word " * 4_000, f"[{', '.join('abc' for _ in range(5_000))}]"):
        message = refusal(changed(STUDY, "  trials: 4", f"  trials: {value}"))
        assert message.startswith(":8: search.trials: expected a valid integer, got ") and len(message) < 200


# --- what cannot be meant, and what hardly is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("workers=1000000", "workers: expected less than or equal to 1024, got 1000000"),
        ("worker_memory=1K", "worker_memory: expected greater than or equal to 256000000, got 1000"),
        ("worker_cpus=1e9", "worker_cpus: expected less than or equal to 1024"),
        ("training.warmup_images=1T", "training.warmup_images: expected less than or equal to 100000000000, got 1000000000000"),
        ("training.batch=1T", "training.batch: expected less than or equal to 1048576"),
        ("training.learning_rate=1000", "training.learning_rate: expected less than or equal to 1, got 1000"),
        ("training.betas=[2, 3]", "training.betas.0: expected less than 1, got 2"),
        ("training.lora={rank: 1M}", "training.lora.rank: expected less than or equal to 8192"),
        ("dataset.image_size=1000000", "dataset.image_size: expected less than or equal to 4096"),
        ("deploy.image_size=1000000", "deploy.image_size: expected less than or equal to 8192"),
        ("search.trials=1T", "search.trials: expected less than or equal to 1000000"),
        ("search.repeats=1T", "search.repeats: expected less than or equal to 1000"),
        ("evaluation.images=1T", "evaluation.images: expected less than or equal to 1000000"),
        ("racing.trials=1T", "racing.trials: expected less than or equal to 1000000"),
        ("metrics=[]", "metrics: expected at least one, got []"),
        ("seed=1e30", "seed: expected a whole number below 2^63, got 1e+30"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(refusal, override, said):
    text = changed(STUDY, "dataset: emoji", "dataset: {name: emoji}")
    assert refusal(text, override).startswith(f"--set {said}")


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ("{x: {levels: {'': {}, b: {training.batch: 32}}}}", "ablation.factors.x.levels: a level without a name"),
        ("{x: {field: training.init, levels: ['', scratch]}}", "ablation.factors.x.levels: a level without a name"),
        ("{'': {field: training.batch, levels: [8, 16]}}", "ablation.factors"),
        ("{x: {field: training.batch, levels: [true, 16]}}", "ablation.factors.x.levels.0: training.batch: expected a number"),
        ("{x: {field: architecture.levels.2.kernel, levels: [3, 9999999]}}", "ablation.factors.x.levels.1: architecture.level"),
        ("{x: {field: architecture.levels.2.down, levels: [[1, 1], [1, 10000000]]}}", "ablation.factors.x.levels.1: architect"),
        ("{x: {field: architecture.levels.2.channels, levels: [1024, wide]}}", "ablation.factors.x.levels.1: architecture.level"),
        ("{x: {field: architecture.levels, levels: [1, 2]}}", "ablation.factors.x.field: no field 'levels'"),
    ],
)  # fmt: skip
def test_levels_that_cannot_be_meant_are_refused(refusal, factors, said):
    text = changed(CELLS, "  factors:\n    x:\n      levels:\n        a: {}\n        b: {training.batch: 32}\n", "")
    assert refusal(text, f"ablation.factors={factors}").startswith(f"--set {said}")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training: {images_seen: 512, warmup_images: 600}", "training.warmup_images: 600 of 512 images seen"),
        (
            "training: {images_seen: 512, warmup_images: 0, learning_rate: 0.5}",
            "training.learning_rate: 0.5 is far more",
        ),
        ("training: {images_seen: 90K, batch: 20K}", "training.batch: 20,000 images an update"),
        ("workers: 900", "workers: 900 side by side on"),
        ("worker_memory: 300M", "worker_memory: 300 M is hardly enough"),
        ("stopping: {rungs: [0.01, 0.02, 1]}", "stopping.rungs: 0.01 and 0.02 of 512 images are both 1 updates"),
        ("stopping: {min_peers: 5}", "stopping.min_peers: 5 of 4 trials have to come first"),
    ],
)
def test_what_is_hardly_meant_is_told_and_done(tmp_path, capsys, setting, said):
    section = setting.partition(":")[0]
    kept = [line for line in STUDY.splitlines() if not line.startswith(section)]
    kept += [] if section == "training" else ["training: {images_seen: 512, warmup_images: 0}"]
    path = tmp_path / "study.yaml"
    path.write_text("\n".join([*(line for line in dict.fromkeys(kept) if line), setting, ""]).replace(
        "training: {images_seen: 512}\n", ""), encoding="utf-8")  # fmt: skip
    launch.show(path, [])
    printed = capsys.readouterr()
    line = path.read_text().splitlines().index(setting) + 1
    assert f"nas: warning: {path}:{line}: {said}" in printed.err and printed.err.count("\n") == 1
    assert yaml.safe_load(printed.out)["search"]["trials"] == 4


def test_the_shipped_studies_are_likely(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for path in mutations.STUDIES.glob("*/study.yaml"):
        assert list(plausible.unlikely(study_file.load(path))) == [], path


# --- what a refused run leaves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("continued", "trials", "left"), [(False, 0, False), (True, 0, True), (False, 1, True)])
def test_a_run_refused_while_it_prepares_takes_its_folders_with_it(tmp_path, continued, trials, left):
    directory = RunDirectory(tmp_path / "runs" / "mine" / "2026-01-01_00-00-00")
    directory.path.mkdir(parents=True)
    directory.cache.mkdir()
    for number in range(trials):
        directory.write_record({"trial": number})
    with (
        pytest.raises(InputError) as refused,
        launch._nothing_left(directory, continued),
        launch._resumable(directory, continued),
    ):
        raise InputError("dataset: shard 3 is corrupt")
    assert directory.path.exists() == left and (tmp_path / "runs").exists() == left
    goes_on = [note for note in getattr(refused.value, "__notes__", []) if "goes on from here" in note]
    assert len(goes_on) == left  # not where nothing is left to go on with


# --- anything at all -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [70, pytest.param(400, marks=pytest.mark.slow)])
def test_mutations_of_the_shipped_studies(count, tmp_path, monkeypatch):
    """Each is a study or is refused in one line of file, line and key; nothing else happens.

    What reads weights and pictures has tests of its own, and takes the longest.
    """
    monkeypatch.setattr(check, "_check_weights", lambda study, network: None)
    monkeypatch.setattr(data_check, "_count", lambda study, split, most: most)
    monkeypatch.setattr(SearchSpace, "load", functools.cache(SearchSpace.load))
    path = tmp_path / "study.yaml"
    refused = 0
    for what, text in mutations.mutations(mutations.shipped(), seed=17, count=count):
        path.write_text(text, encoding="utf-8")
        try:
            with study_file.opened(path) as (study, document):
                launch._checked(study, document)
        except InputError as error:
            refused += 1
            place, line, message = re.fullmatch(rf"({re.escape(str(path))}):(\d+): (.*)", str(error)).groups()
            assert place and 1 <= int(line) <= text.count("\n") + 1, (what, str(error))
            assert len(message) <= MOST, (what, message)
            key = re.match(r"[^:.]*", message)[0]
            known = key in Study.model_fields or re.search(rf"^ *['\"]?{re.escape(key)}['\"]?\s*:", text, re.MULTILINE)
            unread = message.startswith(
                ("not valid YAML", "nested", "more than", "the alias", "a key", "a list", "expected", "unknown key;")
            )
            assert known or unread, (what, message)
        assert list(tmp_path.iterdir()) == [path], what
    assert 0.75 * count < refused < count
