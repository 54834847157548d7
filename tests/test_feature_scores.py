"""Scores of features against torch-fidelity, brute force and closed forms; extractors that a person brings."""

import math

import numpy as np
import pytest
import scipy.spatial.distance
import timm
import torch
from safetensors.torch import save_file
from test_metrics import pictures, samples
from torch import nn
from torch_fidelity import metric_prc

from nas.datasets import Batch
from nas.errors import InputError
from nas.metrics import Reference, density_coverage, fid, memorisation, precision_recall, scores, vendi
from nas.networks import extractors


def batches(count, seed, size=16):
    return lambda: [Batch(pictures(count, seed, size), ["a"] * count, [str(i) for i in range(count)])]


def of(metric, real, drawn):
    """A metric's numbers for features that are given, in place of pictures'."""
    metric.real = torch.as_tensor(real)
    return [float(value) for value in metric.found(torch.as_tensor(drawn))]


@pytest.fixture(scope="module")
def built():
    """(module, metric) of each that compares neighbours, with features to be put in."""
    reference = Reference(batches(4, 0))
    return {m: m.build(m.Settings(), reference) for m in (precision_recall, density_coverage)}


# --- neighbours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "width", "shift"), [(40, 6, 0.0), (40, 6, 1.5), (25, 60, 0.5)])
def test_precision_and_recall_are_torch_fidelitys(built, n, width, shift):
    real, drawn = samples(n, width, 0), samples(n, width, 0)[::-1] * 0.9 + shift + samples(n, width, 1) * 0.3
    theirs = metric_prc.calculate_precision_recall_full(*map(torch.as_tensor, (drawn.copy(), real)))
    assert of(built[precision_recall], real, drawn) == pytest.approx(theirs, abs=1e-6)
    assert min(theirs) < 1 or shift != 1.5


def by_hand(real, drawn, k):
    """Density and coverage as the paper's sums say."""
    balls = [sorted(math.dist(a, b) for b in real)[k] for a in real]  # the nearest is itself
    among = np.array([[math.dist(a, b) <= ball for b in drawn] for a, ball in zip(real, balls, strict=True)])
    return among.sum() / (k * len(drawn)), among.any(1).mean()


def test_density_and_coverage_are_their_sums(built):
    real, drawn = samples(30, 5, 0), samples(30, 5, 0) + 0.8 * samples(30, 5, 1)
    found = of(built[density_coverage], real, drawn)
    assert found == pytest.approx(by_hand(real, drawn, 5), abs=1e-12) and 0 < found[1] < 1


def test_more_real_pictures_are_taken_in_interleaved_groups(built):
    real, drawn = samples(61, 5, 2), samples(20, 5, 3)
    parts = [by_hand(real[first::3][:20], drawn, 5) for first in range(3)]
    assert of(built[density_coverage], real, drawn) == pytest.approx(np.mean(parts, axis=0), abs=1e-12)


def test_equal_distributions_have_the_papers_expectations(built):
    """Density 1, and coverage 1 - prod (n - i) / (2 n - i) over k, of any distribution and width."""
    rng = np.random.default_rng(0)
    found = [of(built[density_coverage], rng.normal(size=(100, 8)), rng.normal(size=(100, 8))) for _ in range(60)]
    missed = math.prod((100 - i) / (200 - i) for i in range(1, 6))
    assert np.mean(found, axis=0) == pytest.approx([1, 1 - missed], abs=0.03)


def test_distances_are_taken_in_parts(monkeypatch):
    points, centres = (torch.as_tensor(samples(n, 4, n)) for n in (50, 37))
    reach = precision_recall.radii(centres, 3)
    whole = precision_recall.inside(points, centres, reach)
    monkeypatch.setattr(precision_recall, "ROWS", 7)
    assert torch.allclose(precision_recall.radii(centres, 3), reach)
    assert all(map(torch.equal, precision_recall.inside(points, centres, reach), whole))


@pytest.mark.parametrize(("real", "drawn"), [(20, 3), (6, 7)])
def test_too_few_pictures_for_neighbours_are_counted(built, real, drawn):
    with pytest.raises(ValueError, match=f"precision_efficientnet_lite0: needs more than 3 .* got {drawn} and {real}"):
        of(built[precision_recall], samples(real, 4, 0), samples(drawn, 4, 1))


# --- diversity and copies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "width"), [(12, 5), (5, 12)])
def test_the_vendi_score_is_the_entropy_of_the_kernel(n, width):
    x = samples(n, width, 0)
    kernel = 1 - scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(x, "cosine"))
    values = np.linalg.eigvalsh(kernel / n)
    values = values[values > 1e-14]
    assert vendi.vendi(torch.as_tensor(x)).item() == pytest.approx(np.exp(-(values * np.log(values)).sum()), abs=1e-6)


def test_the_vendi_score_counts_kinds():
    kinds = torch.eye(8)[[0, 0, 1, 1, 2, 2, 3, 3]]
    assert vendi.vendi(kinds).item() == pytest.approx(4)
    assert vendi.vendi(3 * kinds).item() == pytest.approx(4)
    assert vendi.vendi(torch.ones(7, 3)).item() == pytest.approx(1)


def test_copies_are_memorised_and_far_pictures_are_not(monkeypatch):
    monkeypatch.setattr(memorisation, "ROWS", 6)
    real, drawn = samples(25, 4, 0), samples(20, 4, 0) + 0.4 * samples(20, 4, 1)
    away = [sorted(math.dist(a, b) for b in real)[1] for a in real]
    near = [min(range(25), key=lambda i, a=a: math.dist(a, real[i])) for a in drawn]
    expected = np.mean([math.dist(a, real[i]) < away[i] for a, i in zip(drawn, near, strict=True)])
    x, apart = torch.as_tensor(real), memorisation.nearest_other(torch.as_tensor(real))
    assert apart.tolist() == pytest.approx(away, abs=1e-12) and 0 < expected < 1
    assert memorisation.memorised(torch.as_tensor(drawn), x, apart).item() == pytest.approx(expected, abs=1e-12)
    assert memorisation.memorised(x[:9], x, apart) == 1 and memorisation.memorised(x + 99, x, apart) == 0
    with pytest.raises(ValueError, match="at least 2 real pictures, got 1"):
        memorisation.nearest_other(x[:1])


# --- extractors ------------------------------------------------------------------------------------------------------


class Means(nn.Module):
    def forward(self, images):
        return images.mean((2, 3))


def program(module, path):
    torch.jit.trace(module, torch.zeros(2, 3, 8, 8)).save(path)
    return str(path)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_file_is_an_extractor(tmp_path):
    settings = fid.Settings(features=program(Means(), tmp_path / "my means.pt"), size=8)
    metric = fid.build(settings, Reference(batches(12, 0), [], tmp_path / "cache" / "any"))
    assert metric.columns == ("fid_my_means",)
    assert metric.conditions == {
        "features": "my_means",
        "weights": metric.conditions["weights"],
        "size": 8,
        "references": 12,
    }
    drawn = pictures(9, 1)
    expected = fid.frechet_distance(*(fid.resized(x, 8).mean((2, 3)) for x in (drawn, pictures(12, 0))))
    (found,) = scores([metric], [(drawn, ["a"] * 9)]).values()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    program(nn.Sequential(Means(), nn.Linear(3, 2)), tmp_path / "my means.pt")  # another file is another cache
    assert fid.build(settings, Reference(batches(12, 0), [], tmp_path / "cache" / "any")).real.shape == (12, 2)


@pytest.mark.parametrize(("name", "size", "options"), [("test_vit", 32, {"img_size": 32}), ("test_resnet", 32, {})])
def test_a_model_of_timm_gives_timms_features(tmp_path, name, size, options):
    """As timm's own loader reads the file, with timm's mean and standard deviation."""
    weights = tmp_path / "model.safetensors"
    save_file(timm.create_model(name, pretrained=False).state_dict(), weights)
    overlay = {"file": str(weights)}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **options).eval()
    normalise = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs)).transforms[-1]
    images = pictures(3, 0, size)
    with torch.no_grad():
        expected = theirs(normalise(images / 2 + 0.5))
    found = extractors.load(name, weights, size)(images)
    assert torch.allclose(found, expected, atol=1e-5)
    assert fid.columns(fid.Settings(features=name, weights=weights)) == (f"fid_{name}",)


def test_an_extractor_is_shared_and_looks_at_pictures_once():
    calls = []
    remembering = fid.Remembering(lambda images: calls.append(1) or images.sum((2, 3)))
    images = pictures(2, 0)
    assert remembering(images) is remembering(images) and len(calls) == 1
    images += 1
    assert torch.equal(remembering(images), images.sum((2, 3))) and len(calls) == 2
    assert torch.equal(remembering(images.clone()), images.sum((2, 3))) and len(calls) == 3
    assert fid._extractor(fid.Settings()) is fid._extractor(precision_recall.Settings(neighbours=4))


def test_settings_of_before_are_written_as_before():
    assert fid.Settings().model_dump(mode="json") == {"features": "efficientnet_lite0", "weights": None}
    assert fid.Settings(features="x.pt", size=8).model_dump()["size"] == 8
    with pytest.raises(ValueError, match="size: inception has its own"):
        fid.Settings(features="inception", size=8)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_is_no_extractor_is_said_in_one_line(tmp_path):
    broken, weights = tmp_path / "broken.pt", tmp_path / "model.safetensors"
    broken.write_bytes(b"no program")
    save_file({"a": torch.zeros(1)}, weights)
    whole = program(nn.Identity(), tmp_path / "whole.pt")
    cases = {
        "unknown extractor 'efficientnet_lit0'; did you mean 'efficientnet_lite0'?": ("efficientnet_lit0", None),
        "weights: test_vit needs them: set weights to a local model.safetensors": ("test_vit", None),
        "weights: .*no.safetensors: no such file": ("test_vit", tmp_path / "no.safetensors"),
        "not weights of timm's test_vit: .*Missing key": ("test_vit", weights),
        "no.pt: no such file; expected a TorchScript file": (str(tmp_path / "no.pt"), None),
        "own.pt2: expected a TorchScript file": ("own.pt2", None),
        "broken.pt: not a TorchScript file": (str(broken), None),
        r"whole.pt: gives \(2, 3, 224, 224\) for two pictures, expected \(2, D\)": (whole, None),
    }
    for words, (features, given) in cases.items():
        settings = fid.Settings(features=features, weights=given)
        with pytest.raises(InputError, match=words) as caught:
            fid.check(settings, [])
            fid.build(settings, Reference(list))
        assert "\n" not in str(caught.value)
