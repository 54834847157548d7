"""What an evolution may change, the weights that its trials start from, and what it cannot be."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from test_block_drop import built, inputs, small
from test_evolution import SPACE, STUDY, fewer_conv_blocks
from test_trial import STUDY as TRIAL
from test_trial import Small

from nas.errors import InputError
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.trial import look, moves
from nas.trial.descent import Parent
from nas.trial.rung import Job, run_on
from nas.weights import inheritance, supernet

# --- weights ---------------------------------------------------------------------------------------------------------


def row(*depths):
    """The proxy of MobileDiffusion whose row at 16x16 has stacks of these depths."""
    whole = small("mobilediffusion")
    levels = [vars(level) for level in whole.levels]
    half = len(depths) // 2
    levels[2] = {**levels[2], "down": depths[:half], "up": depths[half:]}
    return type(whole)(**{**vars_of(whole), "levels": tuple(type(whole.levels[0])(**level) for level in levels)})


def vars_of(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.mark.parametrize("depths", [(3, 4, 3, 3, 3), (5, 3, 3, 3, 4), (3, 3, 1, 3, 3)])
@torch.no_grad()
def test_a_copied_block_changes_nothing_until_it_is_trained(depths):
    whole_config, own_config = row(3, 3, 0, 3, 3), row(*depths)
    whole = built(whole_config)
    own = built(own_config, noise=0.3)
    renamed = inheritance.sources(own_config, whole_config)
    with pytest.raises(InputError, match="not the base with blocks removed"):
        inheritance.inherit(copy.deepcopy(own), whole, renamed)
    inheritance.inherit(own, whole, renamed, grown=True)
    assert torch.allclose(own(*inputs()), whole(*inputs()), atol=1e-6)


@torch.no_grad()
def test_a_copy_in_a_row_has_the_weights_of_the_block_before_it():
    whole, own = built(row(3, 3, 3, 3, 3)), built(row(3, 5, 3, 3, 3))
    inheritance.inherit(own, whole, {}, grown=True)
    tensors, stack = own.state_dict(), "levels.2.down.1.stacks.0.blocks"
    for place in (3, 4):
        assert torch.equal(tensors[f"{stack}.{place}.ffn.expand.weight"], tensors[f"{stack}.2.ffn.expand.weight"])
        assert not tensors[f"{stack}.{place}.ffn.project.weight"].any()


def test_a_block_that_cannot_start_as_nothing_is_no_copy():
    for more, fewer in ((row(3, 3, 3, 3, 3, 3), row(3, 3, 3, 3, 3)), (row(3, 3, 3, 3, 3), row(3, 3, 3, 3))):
        pair = supernet.skeleton(more), supernet.skeleton(fewer)
        with pytest.raises(InputError):
            inheritance.check(*pair, inheritance.sources(more, fewer), grown=True)


def test_the_weights_that_a_change_of_the_shipped_space_leaves(tmp_path):
    """All removals and copies of two members, but those that add a conv block, have weights to start from."""
    found = moves.Moves(loaded(tmp_path), SPACE)
    some = {"up_64_b", "up_32_b", "row_16_d", "row_16_a"}  # one of each kind
    for member in (found.start, {**SPACE.smallest(), "row_16_a": 2}):
        now = found.network(member)
        for axis, other in SPACE.moves(member):
            config = found.network(other)
            assert axis not in some or found.descends(config, now) == fewer_conv_blocks(found, config, now)
    assert [move.axis for move in found.removals(member)] == ["row_16_a"]


# --- trials ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path):
    path = tmp_path / "study.yaml"
    text = TRIAL.replace("objective: {name: ufogen, reconstruction: ema_distill}\n", "").replace(
        ", lora: {rank: 2}", ""
    )
    text = text.replace("{solver: one_step}", "{steps: 2}").replace("[macs]", "[denoising_loss]")
    path.write_text(text.replace("warmup_images: 0", "warmup_images: 0, block_drop: {probability: 0.3}"))
    return Small(study_file.load(path), tmp_path)


def trial(bench, folder, images, choices, parent=None, last=True):
    folder.mkdir(exist_ok=True)
    architecture = SPACE.architecture(choices).to_dict()
    found = run_on(bench, Job(0, architecture, 7, 0 if last else 1, images, folder, parent=parent))
    return found, Parent(architecture, folder / "weights.safetensors")


def test_a_trial_goes_on_from_the_weights_of_the_one_before_and_resumes_bit_for_bit(bench, tmp_path):
    base = moves_start()
    first, parent = trial(bench, tmp_path / "first", 16, base)
    fewer = {**base, "up_32_b": "none", "row_16_a": 1}
    seen = look.scored(bench, parent.architecture, 4, parent)
    assert seen == {
        "denoising_loss": first["rung"]["metrics"]["denoising_loss"]
    }  # the look is at the trial's own network

    trial(bench, tmp_path / "start", 0, fewer, parent)
    before, after = (load_file(tmp_path / name / "weights.safetensors") for name in ("first", "start"))
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    gone = {name.split(".blocks")[0] for name in set(before) - set(after)}
    assert {name for name in gone if "levels.2" in name} == {"levels.2.down.0.stacks.0"}
    assert all(name.startswith(("levels.1.up.1", "levels.2.down.0.stacks.0")) for name in gone)

    trial(bench, tmp_path / "parts", 8, fewer, parent, last=False)
    trial(bench, tmp_path / "parts", 24, fewer, parent)
    trial(bench, tmp_path / "whole", 24, fewer, parent)
    parts, whole = (load_file(tmp_path / name / "weights.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in parts.items())
    assert any(not torch.equal(value, after[name]) for name, value in parts.items())


def moves_start():
    """MobileDiffusion in the space."""
    return {**SPACE.largest(), "row_16_d": "three", **{f"row_16_{place}": 3 for place in "abce"}}


# --- what cannot be --------------------------------------------------------------------------------------------------


def loaded(tmp_path, *overrides):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return study_file.load(path, overrides)


def table(tmp_path, latent_size=64, runtime="PyTorch eager"):
    """A table of the base's blocks, of which all members are made, with made-up times."""
    path = tmp_path / "latency.json"
    found = SPACE.architecture({}).blocks(latent_size, 77)
    milliseconds = {block.name: 1.0 + block.channels / 1000 for block in found}
    told = {"threads": 1, "clock": "cpu", "rounds": 1, "runtime": runtime, "device": "d", "fingerprint": "f"}
    content = {"version": 2, "milliseconds": milliseconds, "latent_size": latent_size, "text_tokens": 77, **told}
    path.write_text(json.dumps(content))
    return path


def test_a_target_in_milliseconds_is_the_sum_over_the_table(tmp_path):
    study = loaded(
        tmp_path,
        f"deploy.latency={table(tmp_path)}",
        "search.evolution={target: 40, cost: latency_ms}",
        "search.minimise=[latency_ms]",
    )
    moves.check(study, SPACE)
    found = moves.Moves(study, SPACE)
    blocks = found.network(found.start).blocks(64, 77)
    assert found.target == 40
    assert found.cost(found.network(found.start)) == pytest.approx(
        sum(times * (1.0 + block.channels / 1000) for block, times in blocks.items())
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.evolution.target=0.4"], "search.evolution.target: 0.4 (73.8 G macs) is below 79.7 G, the least that"),
        (["search.evolution.target=0"], "search.evolution.target"),
        (["search.evolution=null"], "evolution: required by sampler evolution"),
        (["search.sampler=tpe"], "evolution: sampler tpe does not read it"),
        (
            ["training.init=scratch"],
            "training.init: evolution goes on from the weights of a base model, but this is scratch",
        ),
        (["base=null"], "base: required, but not given"),
        (
            ["base.architecture=mobilediffusion-lite", "base.checkpoint=null"],
            "space: the base model is not a member of",
        ),
        (["search.minimise=[macs, denoising_loss]"], "search.evolution.quality: 2 scores among the objectives"),
        (["search.evolution.quality=promt_accuracy"], "did you mean 'prompt_accuracy'"),
        (["search.evolution.cost=latency_ms"], "latency_ms needs a table of blocks, deploy.latency"),
        (["search.evolution.cost=mac"], "search.evolution.cost: unknown column 'mac'; did you mean 'macs'"),
        (["budget.macs=100G"], "budget: sampler evolution does not read it"),
        (["search.plan.steps=[4, 8]"], "search.plan: sampler evolution does not read it"),
        (["search.max_refusals=5"], "max_refusals: sampler evolution does not read it; expected one of: tpe"),
        (["stopping.rule=halving"], "stopping.rule: sampler evolution stops no trial early, but this is halving"),
        (
            ["stopping.gain=0.1"],
            "stopping.gain: sampler evolution stops no trial early, but this is 0.1; expected rule",
        ),
        (["search.evolution.runtime=phone"], "has no table of blocks, deploy.latency"),
    ],
)
def test_what_an_evolution_cannot_be(tmp_path, overrides, said):
    with pytest.raises(InputError) as refused:
        study = loaded(tmp_path, *overrides)
        moves.check(study, SPACE)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("made", "wanted", "said"),
    [
        ({"latent_size": 32}, "PyTorch eager", "is of latents of side 32 and 77 text tokens, the study deploys at 64"),
        ({"runtime": "phone"}, "PyTorch eager", "was measured on phone, expected 'PyTorch eager'"),
    ],
)
def test_a_table_of_another_size_or_runtime_is_refused(tmp_path, made, wanted, said):
    given_ = f"search.evolution={{target: 40, cost: latency_ms, runtime: {wanted}}}"
    study = loaded(tmp_path, f"deploy.latency={table(tmp_path, **made)}", given_, "search.minimise=[latency_ms]")
    with pytest.raises(InputError) as refused:
        moves.check(study, SPACE)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_target_in_milliseconds_below_what_any_member_reaches_is_refused(tmp_path):
    study = loaded(
        tmp_path,
        f"deploy.latency={table(tmp_path)}",
        "search.evolution={target: 12.5, cost: latency_ms}",
        "search.minimise=[latency_ms]",
    )
    fewest = min(
        study.deploy.costs(SPACE.architecture(each))["latency_ms"] for each in (SPACE.smallest(), SPACE.largest())
    )
    with pytest.raises(InputError) as refused:
        moves.check(study, SPACE)
    assert f"search.evolution.target: 12.5 (12.5 latency_ms) is below {fewest:.4g}, the least" in str(refused.value)


def test_a_space_without_removals_is_refused(tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text(
        "backbone: unet\nbase: mobilediffusion\naxes:\n  width: {fields: levels.2.channels, choices: [1024, 1280]}\n"
    )
    study = loaded(tmp_path, f"space={path}")
    with pytest.raises(InputError, match="no axis of 'wide' has a choice that makes the base cheaper"):
        moves.check(study, SearchSpace.load(path))


def test_a_search_without_evolution_is_written_as_before(tmp_path):
    assert "evolution" not in loaded(tmp_path, "search={trials: 2, minimise: [macs]}").model_dump()["search"]
