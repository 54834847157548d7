"""Search spaces: members, canonical form, size, and one clear line for a file that cannot be."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError
from nas.networks.backbones import Proxy, unet
from nas.space import cost_tables
from nas.space.search_space import SearchSpace
from nas.space.space_file import SHIPPED

SPACES = {path.stem: SearchSpace.load(path) for path in sorted(SHIPPED.glob("*.yaml"))}
PRESETS = unet.presets()
MEMBERS = {
    "mobilediffusion": ["mobilediffusion", "mobilediffusion-lite"],
    "mobilediffusion_blocks": ["mobilediffusion"],
    "mobilediffusion_full": ["mobilediffusion", "mobilediffusion-lite"],
    "vae_decoder": ["sd15-decoder"],
    "sd_pruning": ["sd15", "bk-sdm-base", "bk-sdm-small", "bk-sdm-tiny", "snapfusion"],
}
MD = SPACES["mobilediffusion"]
SMALL = {
    "backbone": "unet",
    "base": "mobilediffusion",
    "axes": {
        "width": {"fields": "levels.2.channels", "range": {"low": 768, "high": 1024, "step": 128}},
        "attention": {"fields": "levels.2.self_attention", "choices": [True, False]},
        "share": {"fields": "shared_kv", "choices": [True, False], "when": {"attention": True}},
        "blocks": {
            "choices": {
                "two": {"levels.2.down": [3, 3]},
                "one": {"levels.2.down": [3], "levels.2.up": [3, 3]},
            }
        },
    },
}


def load(tmp_path, content):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return SearchSpace.load(path)


def changed(**axes):
    return {**SMALL, "axes": {**SMALL["axes"], **axes}}


# -- shipped spaces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_any_member_is_a_canonical_network_with_a_cost_and_a_proxy(name, seed):
    space = SPACES[name]
    choices = space.sample(random.Random(seed))
    config = space.architecture(choices)
    assert config == config.canonical()
    assert config.cost(64, 77).params > 0
    assert config.scaled(Proxy(8, 4, 384, 384)).cost(8, 16).params < config.cost(8, 16).params
    assert json.loads(json.dumps(choices)) == choices


@pytest.mark.parametrize("name", SPACES)
def test_different_choices_are_different_networks(name):
    space, rng = SPACES[name], random.Random(0)
    members = {json.dumps(choices, sort_keys=True): choices for choices in (space.sample(rng) for _ in range(2_000))}
    assert len({space.architecture(choices) for choices in members.values()}) == len(members)


@pytest.mark.parametrize("name", SPACES)
def test_sampled_members_are_what_optuna_can_suggest(name):
    space, rng = SPACES[name], random.Random(1)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        choices = space.sample(rng)
        study.enqueue_trial(space.parameters(choices))
        trial = study.ask()
        assert space.suggest(trial) == choices
        assert set(trial.params) == set(choices)


@pytest.mark.parametrize("name", SPACES)
def test_ends_of_the_space(name):
    space, rng = SPACES[name], random.Random(2)
    smallest, largest = (space.architecture(c).cost(64, 77).params for c in (space.smallest(), space.largest()))
    drawn = [space.architecture(space.sample(rng)).cost(64, 77).params for _ in range(300)]
    assert smallest <= min(drawn) and max(drawn) <= largest


@pytest.mark.parametrize(("space", "preset"), [(space, preset) for space in MEMBERS for preset in MEMBERS[space]])
def test_published_networks_are_members(space, preset):
    from nas.space.screen import position

    choices = position(SPACES[space], SPACES[space].presets()[preset])
    assert choices is not None
    assert SPACES[space].architecture(choices).key == SPACES[space].presets()[preset].key


def test_size_counts_distinct_networks():
    assert MD.size() == 94_000
    space = replace(MD, axes=tuple(axis for axis in MD.axes if not axis.name.startswith("conv")))
    keys = {space.architecture(choices).key for choices in space.enumerate()}
    assert len(keys) == space.size() == 94_000 // 8


def test_every_condition_of_the_shipped_space_is_used():
    inactive = MD.architecture({axis.name: False for axis in MD.axes if "attention" in axis.name})
    assert not any(level.attends for level in inactive.levels)


# -- a small space ---------------------------------------------------------------------------------------------------


def test_axes_set_their_fields(tmp_path):
    space = load(tmp_path, SMALL)
    config = space.architecture({"width": 896, "attention": True, "share": False, "blocks": "one"})
    assert config.levels[2].channels == 896
    assert not config.shared_kv
    assert (config.levels[2].down, config.levels[2].up) == ((3,), (3, 3))


def test_conditions_decide_which_axes_are_active(tmp_path):
    space = load(tmp_path, SMALL)
    members = list(space.enumerate())
    assert len(members) == space.size() == 3 * 2 * (2 + 1)
    assert all(("share" in choices) == choices["attention"] for choices in members)
    ignored = space.architecture({"attention": False, "share": False})
    assert ignored == space.architecture({"attention": False})


def test_order_of_axes_in_the_file_does_not_matter(tmp_path):
    backwards = {**SMALL, "axes": dict(reversed(SMALL["axes"].items()))}
    space = load(tmp_path, backwards)
    names = [axis.name for axis in space.axes]
    assert names.index("attention") < names.index("share")
    assert space.size() == 18


def test_base_may_be_a_whole_architecture(tmp_path):
    space = load(tmp_path, {**SMALL, "base": PRESETS["mobilediffusion"].to_dict()})
    assert space.base == PRESETS["mobilediffusion"]


# -- files that cannot be --------------------------------------------------------------------------------------------

WIDTH = SMALL["axes"]["width"]
WRONG = {
    "unknown preset": ({**SMALL, "base": "mobilediffusio"}, "base: unknown preset .* did you mean 'mobilediffusion'"),
    "unknown backbone": ({**SMALL, "backbone": "unett"}, "unknown name 'unett'; did you mean 'unet'"),
    "no family": ({k: v for k, v in SMALL.items() if k != "backbone"}, "give one of backbone and decoder"),
    "no axes": ({**SMALL, "axes": {}}, "axes"),
    "unknown key": ({**SMALL, "axis": {}}, "axis: unknown key"),
    "unknown field": (
        changed(width={**WIDTH, "fields": "levels.2.chanels"}),
        "axes.width: 768: no field 'levels.2.chanels'; did you mean 'levels.2.channels'",
    ),
    "unknown level": (changed(width={**WIDTH, "fields": "levels.3.channels"}), "no field 'levels.3.channels'"),
    "unknown top field": (
        changed(width={"fields": "grups", "choices": [16]}),
        "no field 'grups'; did you mean 'groups'",
    ),
    "not divisible by groups": (
        changed(width={"fields": "levels.2.channels", "choices": [1024, 1000]}),
        r"axes.width: 1000 is refused: levels.2.channels=1000 is not divisible by groups=32",
    ),
    "not divisible by heads": (
        changed(width={"fields": "levels.2.channels", "choices": [992]}),
        r"axes.width: 992 is refused: levels.2.channels=992 is not divisible by head_dim=64",
    ),
    "clash of two axes": (
        {**changed(heads={"fields": "head_dim", "choices": [64, 256]}), "hold": {"levels.1.cross_attention": False}},
        "axes.heads: width=896, heads=256 is refused: levels.2.channels=896 is not divisible by head_dim=256",
    ),
    "wrong type": (
        changed(width={"fields": "levels.2.channels", "choices": ["wide"]}),
        "axes.width: 'wide' is refused",
    ),
    "empty choices": (changed(width={"fields": "levels.2.channels", "choices": []}), "choices is empty"),
    "choices and range": (changed(width={**WIDTH, "choices": [768]}), "give one of choices and range"),
    "range that misses its end": (
        changed(width={"fields": "levels.2.channels", "range": {"low": 768, "high": 1000, "step": 128}}),
        "steps from low must end at high",
    ),
    "value twice": (changed(width={"fields": "levels.2.channels", "choices": [768, 768]}), "names a value twice"),
    "condition on nothing": (
        changed(share={**SMALL["axes"]["share"], "when": {"atention": True}}),
        "axes.share.when: no axis 'atention'; did you mean 'attention'",
    ),
    "condition on no choice": (
        changed(share={**SMALL["axes"]["share"], "when": {"width": 700}}),
        "axes.share.when.width: 700 is not one of its choices",
    ),
    "conditions in a circle": (
        changed(
            attention={**SMALL["axes"]["attention"], "when": {"share": True}},
        ),
        "conditions go round in a circle",
    ),
    "held field": ({**SMALL, "hold": {"levels.9.down": [1]}}, "hold.levels.9.down.* no field"),
    "two axes set one field": (
        changed(again={"fields": "levels.*.channels", "choices": [640]}),
        "axes.again: sets levels.2.channels, which axes.width sets too",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cannot_be_is_one_clear_line(tmp_path, case):
    content, message = WRONG[case]
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path, content)
    assert str(error.value).startswith(str(tmp_path / "space.yaml"))
    assert "\n" not in str(error.value)


def test_a_choice_that_no_latents_fit_is_one_line(tmp_path):
    path = tmp_path / "threes.yaml"
    path.write_text("backbone: dit\nbase: pixart\naxes:\n  patch: {fields: patch, choices: [1, 3]}\n")
    space = SearchSpace.load(path)
    assert (
        space.granularity == 6 and space.largest()["patch"] == 3
    )  # by parameters, on latents that both and the base fit
    with pytest.raises(InputError) as refused:
        cost_tables.costs(space, {"patch": np.array([0])}, 64, 77)
    said = "axes.patch: 3 is refused: latents of side 64 are not filled by patches of side 3"
    assert str(refused.value) == f"{path}: {said}"


def test_a_field_that_is_not_there_is_answered_by_the_familys_own(tmp_path):
    path = tmp_path / "pitch.yaml"
    path.write_text("backbone: dit\nbase: pixart\naxes:\n  patch: {fields: pitch, choices: [1, 2]}\n")
    with pytest.raises(
        InputError, match=r"did you mean 'patch'\? \(an axis may name fields such as depth, width, heads\)"
    ):
        SearchSpace.load(path)


def test_unknown_space_lists_what_there_is():
    with pytest.raises(InputError, match="did you mean 'mobilediffusion'"):
        SearchSpace.load("mobilediffusoin")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        SearchSpace.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("choices", "message"),
    [({"widht": 768}, "no axis 'widht'; did you mean 'width'"), ({"width": 700}, "axes.width: 700 is not one of")],
)
def test_a_member_the_space_does_not_have(tmp_path, choices, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, SMALL).architecture(choices)


def test_schema_on_disk_is_the_one_the_code_gives():
    from nas.space.space_file import schema

    assert json.loads((Path(SHIPPED) / "space.schema.json").read_text()) == schema()
