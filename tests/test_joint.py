"""Several spaces searched as one: its members are theirs, costed by look-up as by the closed form, and a study has one front."""

import json
import random
import re
from collections import Counter

import free_study
import numpy as np
import pytest
from optuna.trial import FixedTrial

from nas.errors import InputError
from nas.settings import study_file
from nas.space import cost_tables, screen
from nas.space.search_space import SearchSpace
from nas.trial.checks import check

NAMES = ["mobilediffusion", "dit"]


@pytest.fixture(scope="module")
def joint():
    return SearchSpace.load(NAMES)


def test_its_members_are_those_of_its_spaces(joint):
    assert joint.size() == sum(SearchSpace.load(name).size() for name in NAMES)
    rng, seen = random.Random(0), Counter()
    for _ in range(200):
        choices = joint.sample(rng)
        part = joint.part_of(choices)
        assert joint.architecture(choices) == part.architecture(joint.own(part, choices))
        assert joint.suggest(FixedTrial(joint.parameters(choices))) == choices
        seen[choices["space"]] += 1
    assert min(seen.values()) > 70 and set(seen) == set(NAMES)


def test_its_ends_are_the_least_and_most_of_all(joint):
    ends = [SearchSpace.load(name).architecture(SearchSpace.load(name).largest()).cost(64, 77).params for name in NAMES]
    assert joint.architecture(joint.largest()).cost(64, 77).params == max(ends)
    one = joint.axis("dit.heads")
    assert {choices["space"] for choices in joint.largest_with(one, 6)} == {"dit"}


def test_tables_are_the_closed_form(joint):
    columns = cost_tables.draw(joint, 2_000, seed=1)
    costs = cost_tables.costs(joint, columns, 64, 40)
    assert set(np.unique(columns["space"])) == {0, 1}
    for row in range(0, 2_000, 29):
        exact = joint.architecture(cost_tables.choices_at(joint, columns, row)).cost(64, 40)
        assert {name: costs[name][row] for name in cost_tables.COSTS} == vars(exact)


def test_a_network_is_found_in_the_space_it_is_from(joint):
    for name, config in joint.presets().items():
        found = screen.position(joint, config)
        assert (found is None) == all(screen.position(part, config) is None for part in joint.parts), name
        if found is not None:
            assert joint.architecture(found).key == config.key
    assert screen.position(joint, joint.base)["space"] == "mobilediffusion"


def test_a_search_has_both_on_one_front(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(free_study.STUDY.format(trials=8, workers=2).replace("mobilediffusion", str(NAMES)))
    free_study.coordinate(path, tmp_path / "runs", make=free_study.FreeWorkers)
    records = [json.loads(file.read_text()) for file in tmp_path.glob("runs/free/*/trials/*/record.json")]
    families = Counter(record["architecture"].get("backbone", "unet") for record in records)
    assert set(families) == {"unet", "dit"}
    for record in records:
        assert all(name == "space" or name.startswith(f"{record['choices']['space']}.") for name in record["choices"])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("[mobilediffusion, mobilediffusion]", "space.1: 'mobilediffusion' is there twice"),
        ("[mobilediffusion, dti]", "space.1: no file search_spaces/dti.yaml; did you mean 'dit'?"),
        ("[mobilediffusion, vae_decoder]", "space.1: 'vae_decoder' holds decoders"),
        ("[]", "space: expected a valid string, got []"),
    ],
)
def test_what_cannot_be_joined_is_one_line(tmp_path, space, words):
    path = tmp_path / "study.yaml"
    path.write_text(free_study.STUDY.format(trials=8, workers=2).replace("mobilediffusion", space))
    with (
        pytest.raises(InputError, match=re.escape(words)) as caught,
        study_file.opened(path, []) as (study, _),
    ):
        check.check(study, SearchSpace.load(study.space))
    assert "study.yaml:" in str(caught.value) and "\n" not in str(caught.value)


def test_a_supernet_is_of_one_space(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(free_study.STUDY.format(trials=8, workers=2).replace("mobilediffusion", str(NAMES)))
    with (
        pytest.raises(InputError, match="supernet weights belong to one search space, not to 2"),
        study_file.opened(path, ["training.init=supernet"]) as (study, _),
    ):
        check.check(study, SearchSpace.load(study.space))
