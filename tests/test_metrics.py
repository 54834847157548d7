import json
import math

import numpy as np
import open_clip
import pytest
import scipy.linalg
import scipy.optimize
import tiny_clip
import tiny_preference
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from nas import menu
from nas.datasets import Batch
from nas.errors import InputError
from nas.metrics import Reference, caption_accuracy, clip_score, fid, scene_accuracy, scores
from nas.networks.conditioning import clip

CAPTIONS = ["red apple", "sailing boat", "grinning face", "violin", "ringed planet", "hot pepper"]


def pictures(count, seed, size=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


# --- the Frechet distance --------------------------------------------------------------------------------------------


def formula(mean1, cov1, mean2, cov2):
    """The definition, with a matrix square root."""
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * np.real(root)))


def fitted(features):
    return features.mean(0), np.cov(features, rowvar=False)


def samples(rows, width, seed):
    """Correlated features with different scales and an offset, (rows, width) float64."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) * np.linspace(0.2, 2.0, width)
    return rng.normal(size=(rows, width)) @ mixing + rng.normal(size=width)


def distance(x, y):
    return fid.frechet_distance(torch.as_tensor(x), torch.as_tensor(y)).item()


def test_two_known_gaussians():
    cov1, cov2 = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    mean1, mean2 = np.array([0.0, 1.0]), np.array([2.0, -1.0])
    rng = np.random.default_rng(0)
    x, y = rng.multivariate_normal(mean1, cov1, 50_000), rng.multivariate_normal(mean2, cov2, 50_000)
    assert distance(x, y) == pytest.approx(formula(mean1, cov1, mean2, cov2), rel=0.02)


@pytest.mark.parametrize(
    ("rows1", "rows2", "width"), [(60, 40, 5), (8, 50, 20), (50, 8, 20), (6, 9, 20), (2, 2, 3), (20, 21, 20)]
)
def test_it_is_the_formula_with_more_and_with_fewer_rows_than_features(rows1, rows2, width):
    x, y = samples(rows1, width, 1), samples(rows2, width, 2)
    mean1, cov1, mean2, cov2 = *fitted(x), *fitted(y)
    small = 1e-9 * np.eye(width) if min(rows1, rows2) <= width else 0.0  # sqrtm wants full rank
    assert distance(x, y) == pytest.approx(
        formula(mean1, cov1 + small, mean2, cov2 + small), rel=1e-3 if np.any(small) else 1e-9
    )


@pytest.mark.parametrize(("rows1", "rows2", "width"), [(300, 200, 32), (24, 40, 64)])
def test_it_is_torchmetrics_fid_of_the_same_features(rows1, rows2, width):
    x, y = (torch.as_tensor(samples(rows, width, rows), dtype=torch.float32) for rows in (rows1, rows2))
    given = nn.Identity()
    given.num_features = width
    theirs = FrechetInceptionDistance(feature=given)
    theirs.update(x, real=False)
    theirs.update(y, real=True)
    assert distance(x, y) == pytest.approx(theirs.compute().item(), rel=1e-5)


@pytest.mark.parametrize(("rows1", "rows2"), [(12, 50), (50, 60)])
def test_it_is_a_distance(rows1, rows2):
    x, y = samples(rows1, 16, 3), samples(rows2, 16, 4)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-10) and distance(x, y) > 0
    assert distance(x, x) == pytest.approx(0, abs=1e-9)
    assert distance(x, x[::-1].copy()) == pytest.approx(0, abs=1e-9)
    shift = np.linspace(-1, 1, 16)
    assert distance(x, x + shift) == pytest.approx(np.sum(shift**2), rel=1e-9)  # equal covariances leave the means
    rotation = np.linalg.qr(samples(16, 16, 5))[0]
    assert distance(x @ rotation, y @ rotation) == pytest.approx(distance(x, y), rel=1e-9)


@pytest.mark.parametrize(("rows1", "rows2"), [(1, 5), (5, 1), (0, 5)])
def test_one_picture_has_no_covariance(rows1, rows2):
    with pytest.raises(ValueError, match=f"at least 2 pictures on each side, got {rows1} and {rows2}"):
        distance(np.zeros((rows1, 3)), np.zeros((rows2, 3)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("broken", "words"), [((2, 0), "2 of 6 and 0 of 5"), ((0, 3), "0 of 6 and 3 of 5")])
def test_features_that_are_no_numbers_are_counted(bad, broken, words):
    x, y = samples(6, 4, 1), samples(5, 4, 2)
    x[: broken[0], 1], y[: broken[1], 0] = bad, bad
    with pytest.raises(ValueError, match=f"finite features; {words} pictures have others"):
        distance(x, y)


# --- every metric ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    return tiny_clip.save(tmp_path_factory.mktemp("judge") / "tiny")


@pytest.fixture(scope="module", params=menu.names("metrics"))
def built(request, judge_folder, tmp_path_factory):
    """(module, settings, metric) of every file in the menu; what takes a judge gets a tiny one."""
    module = menu.pick("metrics", request.param)
    options = {"judge": str(judge_folder)} if "judge" in module.Settings.model_fields else {}
    if request.param in tiny_preference.FOLDERS:
        pytest.importorskip("imscore", reason="nas[preference] is not installed")
        options = {"weights": tiny_preference.FOLDERS[request.param](tmp_path_factory.mktemp("weights") / "tiny")}
    settings = module.Settings(**options)
    real = Batch(pictures(20, 0), [captions(module)[i % len(CAPTIONS)] for i in range(20)], [str(i) for i in range(20)])
    return module, settings, module.build(settings, Reference(lambda: [real], real.captions, drawn=captions(module)))


def captions(module):
    """Six different ones that a metric can judge."""
    return (
        [f"a {size} red ring on {shade}" for size in ("big", "small") for shade in ("white", "grey", "black")]
        if (module is scene_accuracy)
        else CAPTIONS
    )


def scored(metric, *batches):
    return scores([metric], batches)


def only(found):
    (value,) = found.values()
    return value


def test_a_metric_describes_itself(built):
    module, settings, metric = built
    assert set(metric.columns) <= set(module.columns(settings)) and len(set(metric.columns)) == len(metric.columns)
    assert metric.unit and isinstance(metric.unit, str)
    assert metric.higher_is_better in (True, False)
    assert json.loads(json.dumps(metric.conditions)) == metric.conditions and metric.conditions
    with pytest.raises(ValueError, match="colour"):
        module.Settings(**settings.model_dump(), colour="red")


def test_two_batches_are_one(built):
    module, _, metric = built
    images, said = pictures(6, 1), captions(module)
    whole = scored(metric, (images, said))
    parts = scored(metric, (images[:2], said[:2]), (images[2:], said[2:]))
    assert list(whole) == list(metric.columns) and all(map(math.isfinite, whole.values()))
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reset_forgets(built):
    module, _, metric = built
    first = scored(metric, (pictures(6, 1), captions(module)))
    scored(metric, (pictures(6, 2), captions(module)))
    assert scored(metric, (pictures(6, 1), captions(module))) == first
    metric.reset()
    with pytest.raises(ValueError, match="no pictures"):
        metric.compute()


def test_what_is_computed_of_the_real_pictures_is_kept_on_disk(tmp_path):
    calls = []

    def batches():
        calls.append(1)
        return [Batch(pictures(5, 0), CAPTIONS[:5], list("abcde"))]

    images = pictures(6, 1)
    values = []
    for _ in range(2):
        metric = fid.build(fid.Settings(), Reference(batches, [], tmp_path / "cache" / "emoji"))
        values.append(scored(metric, (images, CAPTIONS)))
    assert len(calls) == 1 and values[0] == values[1]


def test_real_pictures_without_features_are_said_and_not_kept(tmp_path, monkeypatch):
    broken = torch.nn.Module()
    broken.forward = lambda images: torch.full((len(images), 3), math.nan)
    reference = Reference(lambda: [Batch(pictures(5, 0), CAPTIONS[:5], list("abcde"))], [], tmp_path / "emoji")
    monkeypatch.setattr(fid, "_extractor", lambda settings: broken)
    with pytest.raises(
        InputError, match="metrics.fid: efficientnet_lite0 gives no finite numbers for the real pictures"
    ):
        fid.build(fid.Settings(), reference)
    assert not list(tmp_path.iterdir())


# --- fid -------------------------------------------------------------------------------------------------------------


def test_only_inception_makes_it_fid():
    assert fid.columns(fid.Settings()) == ("fid_efficientnet_lite0",)
    assert fid.columns(fid.Settings(features="inception")) == ("fid",)


def test_early_features_are_those_of_the_stage_at_stride_16():
    early, images = fid.EfficientNet(early=True), pictures(3, 5, size=64)
    stem = early.model.bn1(early.model.conv_stem(images))
    by_hand = nn.Sequential(*early.model.blocks[:5])(stem).mean((2, 3))
    assert early(images).shape == (3, 112) and torch.allclose(early(images), by_hand)
    assert fid.columns(fid.Settings(features="efficientnet_lite0_112")) == ("fid_efficientnet_lite0_112",)


def test_the_pictures_themselves_are_at_distance_zero_and_noise_is_far():
    real = pictures(12, 0)
    metric = fid.build(fid.Settings(), Reference(lambda: [Batch(real, ["a"] * 12, ["b"] * 12)]))
    same = only(scored(metric, (real, ["a"] * 12)))
    other = only(scored(metric, (-torch.ones_like(real) + 0.01 * pictures(12, 3), ["a"] * 12)))
    assert same == pytest.approx(0, abs=1e-4) and other > 1


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_missing_inception_weights_name_the_file_to_put(tmp_path, content):
    path = tmp_path / "inception.pth"
    if content is not None:
        path.write_bytes(content)
    settings = fid.Settings(features="inception", weights=path)
    with pytest.raises(InputError, match=r"weights-inception-2015-12-05-6726825d\.pth") as caught:
        fid.build(settings, Reference(list))
    assert "\n" not in str(caught.value)


# --- the judge -------------------------------------------------------------------------------------------------------


def test_clip_score_is_open_clips_cosine(tmp_path):
    """The same folder through open_clip's own loader, tokenizer and preprocessing."""
    path = tiny_clip.save(tmp_path / "tiny", own_vocabulary=False)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{path}")
    drawn = [Image.fromarray(p) for p in np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)]
    with torch.no_grad():
        seen = model.eval().encode_image(torch.stack([preprocess(image) for image in drawn]), normalize=True)
        read = model.encode_text(open_clip.get_tokenizer(f"local-dir:{path}")(CAPTIONS), normalize=True)
    images = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in drawn]) / 127.5 - 1
    metric = clip_score.build(clip_score.Settings(judge=str(path)), Reference(list))
    expected = 100 * (seen * read).sum(1).mean().item()
    assert only(scored(metric, (images, CAPTIONS))) == pytest.approx(expected, abs=1e-3)


class KnownJudge:
    """Reads a picture's number off its first pixel; pictures and captions of one number are the same unit vector."""

    conditions = {"judge": "known"}

    def images(self, images):
        return torch.eye(256)[((images[:, 0, 0, 0] + 1) * 127.5).round().long()]

    def captions(self, captions):
        return torch.eye(256)[[int(caption) for caption in captions]]


def numbered(numbers):
    return (torch.tensor(numbers, dtype=torch.float32) / 127.5 - 1)[:, None, None, None].expand(-1, 3, 4, 4)


def test_clip_score_of_known_cosines():
    metric = clip_score.ClipScore(KnownJudge())
    assert only(scored(metric, (numbered([1, 2, 3, 4]), ["1", "2", "3", "5"]))) == 75


def test_caption_accuracy_counts_the_pictures_that_show_their_caption():
    metric = caption_accuracy.CaptionAccuracy(KnownJudge(), [str(n) for n in range(200)])
    assert len(metric.pool) == metric.conditions["others"] == 100
    shown = int(metric.pool[0])
    others = [n for n in range(200) if str(n) not in metric.pool]
    assert only(scored(metric, (numbered(others[:4]), [str(n) for n in others[:4]]))) == 1
    assert only(scored(metric, (numbered([shown]), [str(shown)]))) == 1  # a caption of the pool is no rival of itself
    assert only(scored(metric, (numbered([shown]), [str(others[0])]))) == 0
    mixed = [others[0], others[1], shown, shown]
    asked = [str(n) for n in (others[0], others[1], others[2], others[3])]
    assert only(scored(metric, (numbered(mixed), asked))) == 0.5


def test_conditions_tell_how_many_others_there_were():
    assert caption_accuracy.CaptionAccuracy(KnownJudge(), ["1", "2", "3", "3"]).conditions["others"] == 3


def test_the_pool_is_the_same_whatever_the_order_of_the_captions():
    captions = [str(n) for n in range(150)]
    pools = [caption_accuracy.CaptionAccuracy(KnownJudge(), order).pool for order in (captions, captions[::-1] * 2)]
    assert pools[0] == pools[1]


# --- open_clip models that cannot be had -----------------------------------------------------------------------------


def spoil(folder, how):
    if how == "corrupt weights":
        (folder / "open_clip_model.safetensors").write_bytes(b"no weights")
    elif how == "no weights":
        (folder / "open_clip_model.safetensors").unlink()
    elif how == "no config":
        (folder / "open_clip_config.json").unlink()
    else:
        config = json.loads((folder / "open_clip_config.json").read_text())
        if how == "other width":
            config["model_cfg"]["text_cfg"]["width"] = 64
        elif how == "unknown option":
            config["model_cfg"]["text_cfg"]["colour"] = "red"
        elif how == "no model":
            del config["model_cfg"]
        (folder / "open_clip_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "how", ["corrupt weights", "no weights", "no config", "other width", "unknown option", "no model"]
)
def test_a_broken_model_folder_is_named(tmp_path, how):
    folder = tiny_clip.save(tmp_path / "tiny")
    spoil(folder, how)
    with pytest.raises(InputError, match=r"tiny: not an open_clip folder") as caught:
        clip.load(folder)
    assert "\n" not in str(caught.value)


def test_unknown_models_are_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'ViT-L-41' .*ViT-L-14"):
        clip.load("ViT-L-41", "openai")
    with pytest.raises(InputError, match="needs pretrained"):
        clip.load("ViT-B-32")
    with pytest.raises(
        InputError, match="'nowhere.safetensors' for ViT-B-32: neither a checkpoint file nor a tag"
    ) as caught:
        clip.load("ViT-B-32", "nowhere.safetensors")
    assert "\n" not in str(caught.value)


def test_a_text_tower_is_no_judge(tmp_path):
    folder = tiny_clip.save(tmp_path / "tiny")
    path = folder / "open_clip_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if not name.startswith("visual.")}, path)
    with pytest.raises(InputError, match="tiny has no picture tower"):
        clip_score.build(clip_score.Settings(judge=str(folder)), Reference(list))
