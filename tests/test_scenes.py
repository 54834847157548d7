"""The world of scenes: what it draws, what its captions say, and whether its judge can be fooled."""

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nas.datasets import scenes
from nas.datasets.scenes import grammar, judge, world
from nas.datasets.scenes.world import Scene, Thing
from nas.errors import InputError
from nas.metrics import Reference, scene_accuracy, scores

RUNGS = {
    "one": scenes.Settings(),
    "two": scenes.Settings(objects=(1, 2)),
    "three": scenes.Settings(objects=(1, 2, 3), counts=True),
}


@pytest.fixture(params=RUNGS)
def rung(request):
    return RUNGS[request.param]


def batch(settings, count=128, split="train", first=0):
    return scenes.load(settings, split).batch(first, count)


# --- pictures --------------------------------------------------------------------------------------------------------


@given(first=st.integers(0, 10**9), count=st.integers(1, 9), name=st.sampled_from(list(RUNGS)), seed=st.integers(0, 3))
def test_a_picture_depends_on_its_number_only(first, count, name, seed):
    made = scenes.load(RUNGS[name].model_copy(update={"seed": seed}), "held_out")
    together = made.batch(first, count)
    alone = [made.batch(first + index, 1) for index in range(count)]
    assert torch.equal(together.images, torch.cat([one.images for one in alone]))
    assert together.captions == [one.captions[0] for one in alone]


def test_seeds_and_splits_are_other_pictures():
    settings = RUNGS["one"]
    sets = [batch(settings), batch(settings, split="held_out"), batch(settings.model_copy(update={"seed": 1}))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not (sets[a].images == sets[b].images).flatten(1).all(1).any()


def test_the_objects_lie_apart_and_inside(rung):
    layout, _, _ = scenes.load(rung, "train").drawn(0, 2_000)
    there = layout.shape >= 0
    low, high = layout.centre - layout.radius[..., None], layout.centre + layout.radius[..., None]
    assert low[there].min() >= world.MARGIN - 1e-6 and high[there].max() <= 1 - world.MARGIN + 1e-6
    for a, b in ((0, 1), (0, 2), (1, 2)):
        both = there[:, a] & there[:, b]
        apart = np.maximum(low[both, a] - high[both, b], low[both, b] - high[both, a]).max(1)
        assert not both.any() or apart.min() >= world.GAP - 1e-6


def test_everything_occurs_about_equally_often(rung):
    _, drawn, _ = scenes.load(rung, "train").drawn(0, 6_000)
    things = [thing for scene in drawn for thing in scene.things]
    for values, options in (
        ([scene.background for scene in drawn], world.BACKGROUNDS),
        ([thing.colour for thing in things], world.COLOURS),
        ([thing.size for thing in things], world.RADII),
        ([thing.shape for thing in things], world.FORMS),
        ([len(scene.things) for scene in drawn], rung.objects),
    ):
        shares = [values.count(option) * len(options) / len(values) for option in options]
        assert sum(values.count(option) for option in options) == len(values)
        assert all(share == pytest.approx(1, abs=0.25) for share in shares)  # unseen combinations tilt it a little


@pytest.mark.parametrize("shape", world.FORMS)
def test_a_shape_has_the_area_and_centroid_of_its_closed_form(shape):
    at = (np.arange(2_000) + 0.5) / 500 - 2
    inside = world.FORMS[shape].distance(at[None, :], at[:, None]) < 0
    assert inside.sum() / 500**2 == pytest.approx(world.FORMS[shape].area, rel=2e-3)
    down, across = np.nonzero(inside)
    assert at[down].mean() == pytest.approx(world.FORMS[shape].centroid, abs=2e-3)
    assert at[across].mean() == pytest.approx(0, abs=2e-3)
    assert np.abs(at[down]).max() <= 1 and np.abs(at[across]).max() <= 1


# --- captions --------------------------------------------------------------------------------------------------------


def test_what_a_caption_says_is_read_back(rung):
    _, drawn, choices = scenes.load(rung, "held_out").drawn(0, 3_000)
    said = [grammar.caption(scene, chosen) for scene, chosen in zip(drawn, choices.tolist(), strict=True)]
    assert [grammar.parse(caption) for caption in said] == drawn
    assert {word for caption in said for word in caption.replace(",", "").split()} <= set(grammar.words())


def test_a_scene_has_several_captions():
    scene = Scene("grey", (Thing("small", "red", "cross"), Thing("large", "blue", "ring")), "left of")
    middles = (0.1, 0.5, 0.9)
    said = {grammar.caption(scene, (a, b, c, d, 0.0)) for a, b, c, d in product(middles, repeat=4)}
    assert "on grey, a little red cross to the left of a big blue ring" in said
    assert len(said) == 3 * 2 * 2 * 2 and {grammar.parse(caption) for caption in said} == {scene}


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("red heart, noto", "unknown word 'heart'"),
        ("a small mauve circle on white", "unknown word 'mauve'"),
        ("a small red cirle on white", "did you mean 'circle'"),
        ("a small red circle", "expected for example"),
        ("two small red circle on white", "expected for example"),
        ("a small red circle left of a small blue ring and a big pink ring on white", "expected for example"),
        ("", "expected for example"),
    ],
)
def test_other_captions_are_refused_in_one_line(caption, said):
    with pytest.raises(InputError, match=said) as refused:
        grammar.parse(caption)
    assert "\n" not in str(refused.value)


# --- splits ----------------------------------------------------------------------------------------------------------


def kinds(drawn):
    return {f"{thing.colour} {thing.shape}" for scene in drawn for thing in scene.things}


def test_training_never_shows_what_is_unseen_and_a_quarter_of_the_held_out_pictures_do(rung):
    train, held_out = (scenes.load(rung, split).drawn(0, 4_000)[1] for split in ("train", "held_out"))
    assert not kinds(train) & set(rung.unseen) and len(kinds(train)) == 48 - len(rung.unseen)
    novel = [bool(kinds([scene]) & set(rung.unseen)) for scene in held_out]
    assert sum(novel) == len(novel) // 4 and kinds(held_out) == kinds(train) | set(rung.unseen)


# --- the judge -------------------------------------------------------------------------------------------------------


def blurred(images, sigma=0.7):
    at = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-(at**2) / 2 / sigma**2)
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2).expand(3, 1, 9, 9)
    return F.conv2d(F.pad(images, (4,) * 4, mode="replicate"), kernel, groups=3)


def noisy(images):
    return images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def measured(settings, captions, images):
    metric = scene_accuracy.SceneAccuracy(
        [grammar.parse(c) for c in batch(settings, 600).captions], map(grammar.parse, captions)
    )
    return scores([metric], [(images, captions)])


@pytest.mark.parametrize("seen_through", [lambda images: images, blurred, noisy], ids=["clean", "blurred", "noisy"])
def test_real_pictures_are_right(rung, seen_through):
    shown = batch(rung, 200, first=10**6)
    assert measured(rung, shown.captions, seen_through(shown.images))["prompt_accuracy"] >= 0.995


@pytest.mark.parametrize("size", [48, 64, 96])
def test_the_judge_reads_pictures_of_any_size(size):
    settings = scenes.Settings(image_size=size, objects=(1, 2))
    shown = batch(settings, 64)
    assert measured(settings, shown.captions, shown.images)["prompt_accuracy"] == 1


def test_atoms_are_counted_as_another_caption_changes_them():
    """Captions of other pictures: an atom is right exactly as often as the two captions say the same."""
    settings = RUNGS["one"]
    shown = batch(settings, 400)
    asked = shown.captions[1:] + shown.captions[:1]
    found = measured(settings, asked, shown.images)
    pairs = [(grammar.parse(a), grammar.parse(b)) for a, b in zip(shown.captions, asked, strict=True)]
    for atom in ("colour", "size", "shape"):
        expected = sum(getattr(a.things[0], atom) == getattr(b.things[0], atom) for a, b in pairs) / len(pairs)
        assert found[f"{atom}_accuracy"] == pytest.approx(expected)
    assert found["background_accuracy"] == pytest.approx(
        sum(a.background == b.background for a, b in pairs) / len(pairs)
    )
    assert found["prompt_accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def judged(caption, picture):
    return judge.judged(grammar.parse(caption), judge.look(picture, world.RADII_ALONE))


def painted(*spots, size=32, shade=(245, 245, 245)):
    """A picture with discs (x, y, radius, colour)."""
    picture = np.empty((3, size, size), np.float32)
    picture[:] = np.array(shade)[:, None, None]
    at = np.arange(size) + 0.5
    for x, y, radius, colour in spots:
        covered = world.coverage("circle", at[None, :] - x, at[:, None] - y, radius)
        picture += covered * (np.array(world.COLOURS[colour])[:, None, None] - picture)
    return picture / 127.5 - 1


CIRCLE = "a large red circle on a white background"


def test_one_atom_at_a_time_is_wrong():
    right = judged(CIRCLE, painted((16, 16, 9, "red")))
    assert all(all(answers) for answers in right.values())
    for picture, wrong in (
        (painted((16, 16, 9, "blue")), "colour"),
        (painted((16, 16, 5.5, "red")), "size"),
        (painted((10, 16, 9, "red"), (26, 16, 4, "red")), "count"),
        (painted((16, 16, 9, "red"), shade=(150, 150, 150)), "background"),
    ):
        answers = judged(CIRCLE, picture)
        assert [atom for atom in judge.ATOMS if not all(answers[atom])] == [wrong]


def test_nothing_and_noise_are_no_objects():
    rng = np.random.default_rng(0)
    assert judge.look(painted(), world.RADII_ALONE).things == ()
    for _ in range(20):
        blot = F.interpolate(torch.from_numpy(rng.normal(size=(1, 3, 8, 8))), size=32, mode="bicubic")[0].numpy()
        assert not all(all(answers) for answers in judged(CIRCLE, blot.astype(np.float32)).values())


def test_a_blot_that_is_no_shape_has_none():
    picture = painted((12, 16, 6, "red"), (19, 16, 6, "red"), (16, 21, 6, "red"), (8, 9, 5, "red"))
    (found,) = judge.look(picture, world.RADII_ALONE).things
    assert found.colour == "red" and found.shape is None


def test_relations_follow_the_rule_of_geneval():
    def at(x, y, side=8.0):
        return judge.Found("red", "circle", "small", (x, y), (side, side))

    for degrees in range(0, 360, 7):
        dx, dy = 12 * math.cos(math.radians(degrees)), 12 * math.sin(math.radians(degrees))
        # by hand: each component loses 0.1 of the summed sizes, 1.6, and must then be over half of the length
        x, y = (math.copysign(max(abs(value) - 1.6, 0), value) for value in (dx, dy))
        length = math.hypot(x, y)
        expected = {
            name
            for name, value in (("right of", x), ("left of", -x), ("below", y), ("above", -y))
            if value / length > 0.5
        }
        assert judge.relations(at(dx, dy), at(0, 0)) == expected
    assert judge.relations(at(1, 1), at(0, 0)) == set()


def test_two_objects_are_matched_so_that_most_is_right():
    caption = "a small red circle left of a large blue ring on white"
    scene = grammar.parse(caption)
    first = judge.Found("blue", "ring", "large", (25, 16), (12, 12))
    second = judge.Found("red", "circle", "small", (6, 16), (8, 8))
    for things in ((first, second), (second, first)):
        assert all(all(answers) for answers in judge.judged(scene, judge.Seen("white", things)).values())
    missing = judge.judged(scene, judge.Seen("white", (second,)))
    assert missing["colour"] == [True, False] and missing["relation"] == [False] and missing["count"] == [False]


# --- the metric ------------------------------------------------------------------------------------------------------


def test_unseen_combinations_have_a_column_of_their_own():
    settings = RUNGS["one"]
    trained, drawn = batch(settings, 2_000).captions, batch(settings, 64, "held_out")
    metric = scene_accuracy.build(scene_accuracy.Settings(), Reference(lambda: [], trained, drawn=drawn.captions))
    real = scores([metric], [(drawn.images, drawn.captions)])
    assert real["unseen_prompt_accuracy"] == 1.0 and "relation_accuracy" not in metric.columns
    novel = [bool(kinds([grammar.parse(caption)]) & set(settings.unseen)) for caption in drawn.captions]
    spoilt = torch.where(torch.tensor(novel)[:, None, None, None], -drawn.images, drawn.images)
    found = scores([metric], [(spoilt, drawn.captions)])
    assert found["unseen_prompt_accuracy"] == 0 and found["prompt_accuracy"] == 1


def test_it_refuses_another_picture_set():
    with pytest.raises(InputError, match=r"scene_accuracy judges pictures of dataset scenes only: .*'heart'"):
        scene_accuracy.build(scene_accuracy.Settings(), Reference(lambda: [], ["red heart, noto"]))


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shapes": ["circle", "hexagon"]}, "hexagon|circle"),
        ({"colours": ["mauve"]}, "red"),
        ({"relations": ["inside"]}, "left of"),
        ({"image_size": 20}, "too small for small and large objects; expected at least 24"),
        ({"image_size": 30, "objects": [1, 2]}, "expected at least 32"),
        ({"unseen": ["blue hexagon"]}, "'hexagon'"),
        ({"colours": ["red"], "shapes": ["ring"], "unseen": ["red ring"]}, "is left for training"),
        ({"objects": [2], "colours": ["red"], "unseen": []}, "2 of them need as many colours, got red"),
        ({"objects": []}, "at least 1 item"),
    ],
)
def test_impossible_worlds_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        scenes.Settings.model_validate(given)
