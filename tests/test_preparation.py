"""`nas prepare`: what is missing is made once, an interrupted step goes on to the same bits, what does not fit is refused."""

import json
import math
import os

import open_clip
import pytest
import tiny_clip
import torch
import torch.nn.functional as F
from in_process import nas
from PIL import Image
from safetensors.torch import load_file

from nas import interruption
from nas.assets import make_autoencoder
from nas.datasets import Batch
from nas.disk import weight_files
from nas.errors import InputError
from nas.metrics import clip_score
from nas.metrics.clip_score import Judge
from nas.networks.autoencoders import kl
from nas.preparation import job, judge, lessons
from nas.preparation.lessons import Length
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.training import autoencoders, encoded, fitting, judges
from nas.training.autoencoders import Reconstruction
from nas.training.judges import Contrast, Lessons
from nas.trial import supernet_training
from nas.trial.bench import Bench
from nas.trial.checks import check as checking
from nas.trial.checks.check import check
from nas.weights import parts, worlds

SPACE = """
backbone: unet
base:
  levels:
    - { channels: 64, down: [0], up: [0] }
    - { channels: 64, down: [1], up: [1], self_attention: true, cross_attention: true, conv: separable }
axes:
  ffn_ratio: { fields: levels.1.ffn_ratio, choices: [2, 3] }
"""
STUDY = """
name: cards
space: {root}/tiny.yaml
dataset: {{name: folder, path: {root}/cards, image_size: 32}}
autoencoder: {{name: kl, path: {root}/parts/autoencoder.safetensors}}
proxy: {{width_divisor: 16}}
training: {{images_seen: 16, batch: 8, init: {root}/parts/supernet.safetensors}}
sampling: {{steps: 1}}
evaluation: {{images: 8}}
metrics: [mind, {{name: caption_accuracy, judge: {root}/parts/judge}}]
search: {{sampler: pool, trials: 2, minimise: [mind_efficientnet_lite0, macs]}}
"""
SHORT = job.Asked(1e-6, 1e-6, 1e-6)


def pictures(count=12, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    """A judge of a few thousand parameters in place of the one that ships, and few updates to time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_score, "SHIPPED", tiny_clip.save(tmp_path_factory.mktemp("shipped") / "judge"))
        patch.setattr(lessons, "TIMED", 1)
        patch.setattr(checking, "PROBES", 50)
        patch.setattr(supernet_training, "POOL", 4)
        patch.setattr(judges.Contrast.__init__, "__defaults__", (4, 3e-4, 0))
        patch.setattr(autoencoders.Reconstruction.__init__, "__defaults__", (2, 7e-4, 0))
        patch.setattr(interruption, "install_in_trainer", lambda: None)
        yield


def world(root):
    (root / "cards").mkdir(parents=True)
    lines = []
    for number in range(40):
        name = f"{number}.png"
        Image.new("RGB", (40, 36), (6 * number, 90, 255 - 6 * number)).save(root / "cards" / name)
        lines.append(json.dumps({"file_name": name, "text": f"card number {number}"}))
    (root / "cards" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (root / "tiny.yaml").write_text(SPACE)
    (root / "study.yaml").write_text(STUDY.format(root=root))
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A study that was prepared, what was said, and what was shown."""
    root = world(tmp_path_factory.mktemp("own"))
    said, shown = [], []
    missing = prepare(root, said, shown, only_check=True)
    before = sorted(path.name for path in root.iterdir())
    assert prepare(root, said, shown)
    return root, missing, before, said, shown


def prepare(root, said=None, shown=None, only_check=False, overrides=()):
    def show(headings, rows):
        (shown if shown is not None else []).append([headings, *rows])

    say = (said if said is not None else []).append
    return job.run(root / "study.yaml", overrides, SHORT, root / ".cache", only_check, say, show)


def test_what_is_missing_is_said_made_and_then_there(prepared, monkeypatch):
    root, missing, before, said, shown = prepared
    assert missing is False and before == ["cards", "study.yaml", "tiny.yaml"]  # a check writes nothing
    assert [row[0] for row in shown[0][1:]] == ["autoencoder", "judge", "references", "supernet"]
    assert all(row[2] == "missing" and "about" in row[3] for row in shown[0][1:])
    assert sorted(path.name for path in (root / "parts").iterdir()) == [
        "autoencoder.safetensors", "judge", "supernet.png", "supernet.safetensors"]  # fmt: skip
    lines = [line for line in said if line.startswith(("autoencoder: copies", "judge /"))]
    assert "dB" in lines[0] and "held-out picture" in lines[1] and "chance" in lines[1]
    ceiling = {row[0]: row[1] for row in shown[-1][1:]}
    assert set(ceiling) >= {"real", "copies", "untrained"}
    monkeypatch.setattr(encoded, "encode", None)  # what is there is not computed again
    monkeypatch.setattr(lessons, "trained", None)
    again = []
    assert prepare(root, shown=again, only_check=True) and {row[2] for row in again[0][1:]} == {"there"}


def test_the_study_then_begins_without_preparing_anything(prepared, monkeypatch):
    root = prepared[0]
    study = study_file.load(root)
    check(study, SearchSpace.load(study.space))
    monkeypatch.setattr(encoded, "encode", None)
    bench = Bench(study, root / ".cache")
    bench.prepare()
    bench.check_weights()
    assert worlds.told(study.resolved()).count("(use") == 1  # the text encoder alone is another world's
    judged = next(metric for metric in bench.metrics if metric.columns == ("caption_accuracy",))
    assert judged.conditions["weights"] == weight_files.metadata(root / "parts/judge/open_clip_model.safetensors", "")[
        "fingerprint"
    ]  # fmt: skip


def test_latents_of_another_autoencoder_of_the_same_name_are_not_taken(prepared, tmp_path):
    root = world(tmp_path / "other")
    study = study_file.load(root)
    path = parts.named(study)[0].path
    path.parent.mkdir()
    places = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            autoencoders.write(make_autoencoder.network(8), pictures(4), path, {})
        places.append(Bench(study, root).encoded_path("train"))
    assert places[0] != places[1]


@pytest.mark.parametrize("kind", ["autoencoder", "judge"])
def test_a_training_that_is_interrupted_goes_on_to_the_same_bits(kind, tmp_path, monkeypatch):
    seen = pictures(6, 16)

    def trained(stops):
        part = tmp_path / f"{len(stops)}" / "part"
        part.parent.mkdir()
        Length.of(part, 1).times(lambda: 60 / 5)  # five updates, as the first command found out
        for stop in (*stops, None):
            made = []

            def make(updates, made=made):
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    new = (
                        Reconstruction(make_autoencoder.network(4), updates)
                        if kind == "autoencoder"
                        else Contrast(Judge(clip_score.Settings()), updates)
                    )
                made.append(new)
                return new

            monkeypatch.setattr(
                interruption, "asked", lambda made=made, stop=stop: bool(made) and made[-1].step == stop
            )
            given = seen if kind == "autoencoder" else Lessons(seen, [f"card {n}" for n in range(6)])
            try:
                one = lessons.trained(make, given, part, 99, kind, lambda line: None)  # a length once found stays
            except interruption.Interrupted:
                assert stop is not None and lessons.checkpoint(part).exists()
        assert one.step == 5
        return one.averaged().state_dict()

    straight, broken = trained([]), trained([1, 3])
    assert all(torch.equal(value, broken[name]) for name, value in straight.items())


def test_an_interrupted_preparation_goes_on(prepared, tmp_path, monkeypatch):
    root, said, steps = world(tmp_path / "again"), [], []
    monkeypatch.setattr(fitting, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(interruption, "asked", lambda: bool(steps))
    monkeypatch.setattr(judge, "make", lambda *given: (_ for _ in ()).throw(interruption.Interrupted("told to stop")))
    with pytest.raises(interruption.Interrupted):
        prepare(root, said)
    assert [part.role for part in parts.absent(study_file.load(root))] == ["judge", "supernet"]
    monkeypatch.undo()
    shown = []
    lessons.Length.of(root / "parts" / "judge", 1.0).times(lambda: 1.0)  # what a training writes first
    prepare(root, shown=shown, only_check=True)
    assert [row[2] for row in shown[0][1:]] == ["there", "begun", "missing", "missing"]
    assert shown[0][2][3].startswith("1 min 0 s of a core")  # of what was begun, whatever is asked for now
    monkeypatch.setattr(judge, "make", lambda *given: (_ for _ in ()).throw(interruption.Interrupted("told to stop")))
    with pytest.raises(interruption.Interrupted):
        prepare(root, said)
    (line,) = [
        line for line in said if line.startswith("judge: goes on with the 1 minutes of a core it was begun with")
    ]
    assert line.endswith(f"remove {root / 'parts' / 'judge.length.json'} to begin anew")
    first, second = (load_file(one / "parts" / "autoencoder.safetensors") for one in (root, prepared[0]))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_contrast_is_open_clips_where_captions_differ_and_spares_equal_ones():
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(5, 7, generator=generator), dim=-1) for _ in range(2))
    scale = torch.tensor(9.0)
    own = judges.contrast(scale * a @ b.T, [f"caption {n}" for n in range(5)])
    assert float(own) == pytest.approx(float(open_clip.ClipLoss()(a, b, scale)), rel=1e-6)
    logits = torch.tensor([[1.0, 5.0, 0.0], [5.0, 2.0, 0.0], [0.0, 0.0, 3.0]])  # the first two have one caption
    rows = [math.exp(1) / (math.exp(1) + 1), math.exp(2) / (math.exp(2) + 1), math.exp(3) / (math.exp(3) + 2)]
    assert float(judges.contrast(logits, ["x", "x", "y"])) == pytest.approx(-sum(map(math.log, rows)) / 3)


def test_the_loss_of_an_autoencoder_is_l1_l2_and_a_little_of_the_posteriors_divergence():
    model, x = kl.load(kl.Settings()).model.eval(), pictures(2)
    with torch.no_grad():
        loss = autoencoders.loss_of(model, x, torch.Generator().manual_seed(3))
        moments = model.quant_conv(model.encoder(x))
        mean, log_variance = moments.chunk(2, 1)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
        copies = model.decoder(model.post_quant_conv(mean + (0.5 * log_variance).exp() * noise))
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
    error = (copies - x).abs().mean() + (copies - x).square().mean()
    assert float(loss) == pytest.approx(float(error + 1e-6 * divergence), rel=1e-4)


def test_only_as_many_pictures_as_there_is_room_for_are_learned_from(monkeypatch):
    batches = [Batch(pictures(4), [f"{n}" for n in range(4)], [""] * 4)] * 3
    assert len(lessons.pictures(batches)[1]) == 12 and lessons.pictures(batches, 3)[0].shape == (3, 3, 32, 32)
    monkeypatch.setattr(lessons, "MOST_BYTES", 5 * 3 * 32 * 32 * 4)
    assert len(lessons.pictures(batches)[1]) == 8


def test_what_the_autoencoder_costs_is_said_from_a_quarter_of_the_way_on():
    def lines(copies):
        scores = {"held_out": 100.0, "autoencoded": copies, "untrained": 500.0}
        return {name: {"told": "", "scores": {"mind_efficientnet_lite0": value}} for name, value in scores.items()}

    better = {"mind_efficientnet_lite0": False, "caption_accuracy": True}
    assert list(job.costly(lines(190.0), better)) == []
    (line,) = job.costly(lines(300.0), better)
    assert "50 %" in line and "--autoencoder" in line
    assert list(job.costly({"real": {"told": "", "scores": {}}}, better)) == []


def of_another_space(root):
    (root / "other.yaml").write_text(SPACE)
    return [f"space={root}/other.yaml"]


def of_other_latents(root):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoders.write(make_autoencoder.network(8, 4), pictures(4), root / "narrow.safetensors", {})
    return [f"autoencoder.path={root}/narrow.safetensors"]


def broken(root):
    (root / "broken").mkdir(exist_ok=True)
    for number in range(20):
        (root / "broken" / f"{number}.png").write_bytes(b"no picture")
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"card {n}"}) for n in range(20)]
    (root / "broken" / "metadata.jsonl").write_text("\n".join(lines))
    return [f"dataset.path={root}/broken"]


def empty(root):
    (root / "empty").mkdir(exist_ok=True)
    return [f"dataset.path={root}/empty"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_another_space, ["training.init", "holds weights for space 'tiny', not 'other'"]),
        (of_other_latents, ["training.init", "latent_channels 8, not 4"]),
        (broken, ["dataset", ".png", "20 of 20 pictures cannot be read"]),
        (empty, ["dataset.path", "metadata.jsonl does not exist"]),
        (lambda root: ["metrics=[mind, clip_score]"], ["metrics.1.judge", "nas prepare", "emoji only, not of folder"]),
        (lambda root: ["metrics=[mind, {name: clip_score, judge: ViT-B-99, pretrained: a}]"], ["ViT-B-99"]),
        (lambda root: ["trials=2"], ["trials"]),
    ],
)  # fmt: skip
def test_what_no_run_would_begin_with_is_one_line_and_nothing_is_made(prepared, monkeypatch, change, words):
    root = prepared[0]
    monkeypatch.setattr(job, "lock", None)  # what is made first
    monkeypatch.setattr(
        worlds, "made_for", lambda path, own=worlds.made_for: "emoji" if path == clip_score.SHIPPED else own(path)
    )
    with pytest.raises(InputError) as caught:
        prepare(root, overrides=change(root))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)


def test_the_shipped_judge_is_only_asked_by_its_name(prepared, monkeypatch):
    monkeypatch.setattr(worlds, "made_for", lambda path: "emoji" if path == clip_score.SHIPPED else None)
    study = study_file.load(prepared[0], ["metrics=[mind, {name: clip_score, judge: shipped}]"])
    check(study, SearchSpace.load(study.space))
    assert "judge" in worlds.told(study.resolved())  # and the run says that it knows other pictures


def test_a_run_of_a_study_whose_parts_are_not_there_says_what_makes_them(prepared, tmp_path):
    study = study_file.load(prepared[0], [f"autoencoder.path={tmp_path}/none.safetensors"])
    with pytest.raises(InputError, match="autoencoder.path: .*none.safetensors: no such file; .*nas prepare STUDY"):
        check(study, SearchSpace.load(study.space))


def test_the_command_says_whether_anything_is_missing(tmp_path, monkeypatch):
    root = world(tmp_path / "command")
    monkeypatch.chdir(root)
    told = nas("prepare", "study.yaml", "--check", "--autoencoder", "2", "--supernet", "30")
    assert (
        told.returncode == 1 and "30 min 0 s of a core" in told.stdout and "next: nas prepare study.yaml" in told.stdout
    )
    assert not os.path.exists("runs") and not (root / "parts").exists()
    for words, message in ((["--judge", "0"], "--judge 0: expected minutes above 0"), ([], "nowhere")):
        refused = nas("prepare", "study.yaml" if words else "nowhere.yaml", *words)
        assert refused.returncode == 2 and message in refused.stderr and refused.stderr.count("\n") == 1
