"""Latency: what is timed, how tables are kept, and sums of blocks against whole networks."""

import dataclasses
import time
from collections import Counter

import exported
import pytest
import torch
import yaml
from typer.testing import CliRunner

from nas import cli, machine
from nas.cost import latency_table
from nas.deploy.speed import block_latency, latency, latency_rows
from nas.errors import InputError
from nas.networks.backbones.unet import Config, Level, blocks, network, presets
from nas.settings import study
from nas.space import fields, search_space

SMALL = Config(
    levels=(
        Level(32, (1,), (1, 1), cross_attention=True, ffn_ratio=2),
        Level(64, (2, 1), (1, 0), self_attention=True, cross_attention=True, conv="separable", kernel=5),
    ),
    mid=(1,),
    skips="all",
    text_width=24,
    pooled_width=16,
    time_width=48,
    groups=4,
    head_dim=8,
)


def row(**changed):
    values = {field.name: 1.0 for field in dataclasses.fields(latency_rows.Row)}
    words = {"network": "a", "weights": "random", "runtime": "eager", "runtime_version": "torch 1", "decoder": "d"}
    numbers = {"threads": 1, "image_size": 64, "steps": 2, "repeats": 3}
    return latency_rows.Row(**{**values, **words, **numbers, "device": "this", "fingerprint": "00", **changed})


def test_a_timing_is_of_what_was_called():
    calls = []
    found = latency.timed(lambda: (calls.append(1), time.sleep(0.02)), repeats=4, warmup=2)
    assert len(calls) == 6
    assert found.low_ms <= found.median_ms <= found.high_ms and found.median_ms >= 20
    assert found.cpu_ms < 15  # sleeping takes no processor time


def test_quartiles_are_those_of_the_wall_times():
    found = latency.summary([(1.0, 9.0), (2.0, 8.0), (3.0, 7.0), (4.0, 6.0), (100.0, 5.0)])
    assert (found.low_ms, found.median_ms, found.high_ms, found.cpu_ms) == (2.0, 3.0, 4.0, 7.0)


def test_a_row_adds_up(tmp_path):
    run = exported.run_directory(tmp_path / "small" / "2026")
    from nas.deploy import export

    folder = export.export(run, "trial:0", tmp_path / "model")
    subject = latency.subject(str(folder), 512, None)
    assert subject.steps == 4 and subject.image_size == 64  # two solver steps, two guidance branches
    found = latency.measure(subject, "eager", 1, 2)
    expected = found.text_encoder_ms + 4 * found.denoiser_ms + found.decoder_ms
    assert found.overall_ms == pytest.approx(expected) and found.fingerprint == machine.device()[1]
    latency_rows.write_csv([found], tmp_path / "t.csv")
    assert latency_rows.read_csv(tmp_path / "t.csv") == [found]
    with pytest.raises(InputError, match="unknown runtime 'onnxruntme'; did you mean 'onnxruntime'"):
        latency.measure(subject, "onnxruntme", 1, 1)


def test_tables_keep_the_newest_and_refuse_other_devices(tmp_path):
    path = tmp_path / "t.csv"
    latency_rows.write_csv([row(), row(decoder="e"), row(network="b")], path)
    latency_rows.write_csv([row(overall_ms=7.0)], path)
    found = [(one.network, one.decoder, one.overall_ms) for one in latency_rows.read_csv(path)]
    assert found == [("a", "e", 1.0), ("b", "d", 1.0), ("a", "d", 7.0)]
    before = path.read_bytes()
    with pytest.raises(InputError, match="rows of different devices do not compare: 00 is this, 11 is that"):
        latency_rows.write_csv([row(device="that", fingerprint="11")], path)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="different devices"):
        latency_rows.grid([row(), row(fingerprint="11")])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="not a table of latencies"):
        latency_rows.read_csv(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mobilediffusio", 512, None), ["mobilediffusion"]),
        (("sdxl", 512, None), ["unknown network 'sdxl'; ", "mobilediffusion, "]),
        (("mobilediffusion", 500, None), ["500", "multiple of 8"]),
        (("mobilediffusion", 8, None), ["cannot be halved"]),
    ],
)
def test_what_cannot_be_timed(arguments, words):
    with pytest.raises(InputError) as caught:
        latency.subject(*arguments)
    assert all(word in str(caught.value) for word in words)
    assert "did you mean 'sdxl'" not in str(caught.value) and not str(caught.value).startswith("cost")


# --- blocks ----------------------------------------------------------------------------------------------------------


KINDS = (network.FullConv, network.SeparableConv, network.Stack, network.TransformerBlock)


def calls(built, inputs):
    """Class, shape and strides of the first input of every block that a call runs."""
    seen = Counter()

    def note(module, given):
        seen[type(module).__name__, given[0].shape[1:], given[0].stride()[1:]] += 1

    for module in built.modules():
        if isinstance(module, KINDS):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        built(*inputs)
    return seen


@pytest.mark.parametrize("config", [SMALL, dataclasses.replace(SMALL, projections="block", skips="outer", mid=())])
def test_blocks_are_those_a_forward_pass_runs_on_inputs_that_lie_alike_in_memory(config):
    from nas.networks.conditioning import Text

    text = Text(torch.randn(1, 6, config.text_width), torch.randn(1, config.pooled_width or 1))
    latents = torch.randn(1, config.latent_channels, 8, 8)
    found = Counter()
    for block, times in blocks.blocks(config, 8, 6).items():
        for call in calls(*blocks.build(block)).elements():
            found[call] += times
    assert found == calls(config.build(), (latents, torch.zeros(1, dtype=torch.long), text))


@pytest.mark.parametrize("pooled_tokens", [0, 3])
def test_blocks_have_all_the_parameters_of_the_network(pooled_tokens):
    config, total = dataclasses.replace(SMALL, pooled_tokens=pooled_tokens), 0
    for block, times in blocks.blocks(config, 8, 6).items():
        built, inputs = blocks.build(block)
        built(*inputs)
        total += times * sum(p.numel() for p in built.parameters())
    assert total == config.cost(8, 6).params


def table(config, milliseconds=2.0, **changed):
    found = {block.name: milliseconds for block in blocks.blocks(config, 64, 77)}
    values = {"latent_size": 64, "text_tokens": 77, "threads": 1, "clock": "cpu", "rounds": 1, "runtime": "eager"}
    return latency_table.Table(found, **{**values, "device": "this", "fingerprint": "00", **changed})


def test_a_study_has_the_sum_as_a_cost(tmp_path):
    config = presets()["mobilediffusion"]
    count = sum(blocks.blocks(config, 64, 77).values())
    table(config).save(tmp_path / "blocks.json")
    deploy = study.Deploy(latency=tmp_path / "blocks.json")
    costs = deploy.costs(config)
    assert costs["latency_ms"] == pytest.approx(2.0 * count) and costs["params"] == config.cost(64, 77).params
    assert deploy.latency_conditions()["latency_ms"]["fingerprint"] == "00"
    assert study.Deploy().latency_conditions() == {}
    wider = fields.changed(config, [("levels.2.channels", 768)])
    with pytest.raises(InputError, match="lacks the block '.*768.*'; measure it again"):
        deploy.costs(wider)
    with pytest.raises(InputError, match="latents of side 64 and 77 text tokens, the study deploys at 32 and 77"):
        study.Deploy(latency=tmp_path / "blocks.json", image_size=256).costs(config)
    (tmp_path / "other.json").write_text('{"version": 9}')
    with pytest.raises(InputError, match="version 9, expected 2"):
        latency_table.load(tmp_path / "other.json")
    with pytest.raises(InputError, match="not a latency table"):
        latency_table.load(tmp_path / "none.json")


def test_every_block_is_timed():
    wanted = list(blocks.blocks(SMALL, 8, 6))
    found = block_latency.measure(wanted, blocks.build, 8, 6, rounds=2, clock="wall")
    assert set(found.milliseconds) == {block.name for block in wanted}
    assert all(ms > 0 for ms in found.milliseconds.values())
    assert found.latency_ms(SMALL) == pytest.approx(
        sum(times * found.milliseconds[b.name] for b, times in blocks.blocks(SMALL, 8, 6).items())
    )


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from nas.deploy import export

    run = exported.run_directory(tmp_path_factory.mktemp("runs") / "small" / "2026")
    return export.export(run, "trial:0", tmp_path_factory.mktemp("model") / "small")


def command(*arguments):
    """(exit code, what it printed) of nas latency."""
    found = CliRunner().invoke(cli.app, ["latency", *map(str, arguments)])
    return found.exit_code, found.output, found.exception


def test_the_command_prints_and_keeps_rows(folder, tmp_path):
    path = tmp_path / "t.csv"
    arguments = (folder, "--repeats", 2, "--csv", path)
    code, said, _ = command(*arguments)
    rows = latency_rows.read_csv(path)
    assert code == 0 and [row.runtime for row in rows] == ["eager"]
    assert said.splitlines()[0].split()[:2] == ["network", "runtime"] and len(said.strip().splitlines()) == 2
    assert all(row.repeats == 2 and row.load >= 0 and row.device == machine.device()[0] for row in rows)
    path.write_text(path.read_text().replace(rows[0].fingerprint, "deadbeef"))
    before = path.read_text()
    code, _, error = command(*arguments)
    assert code == 1 and isinstance(error, InputError) and "rows of different devices do not compare" in str(error)
    assert path.read_text() == before


def test_the_command_measures_the_blocks_of_a_space(tmp_path):
    space_file, out = tmp_path / "space.yaml", tmp_path / "blocks.json"
    axes = {"ffn": {"fields": "levels.1.ffn_ratio", "choices": [1, 2]}}
    space_file.write_text(yaml.safe_dump({"backbone": "unet", "base": SMALL.to_dict(), "axes": axes}))
    code, said, error = command(space_file, "--blocks", out, "--image-size", 64, "--repeats", 1)
    assert code == 0, error
    table = latency_table.load(out)
    wanted = {block.name for block in block_latency.of_space(search_space.SearchSpace.load(str(space_file)), 8, 77)}
    assert set(table.milliseconds) == wanted and f"{len(wanted)} blocks" in said
    code, _, error = command(space_file, space_file, "--blocks", out)
    assert code == 1 and "expected one search space, got 2 names" in str(error)
    for option, given in (("--runtime", "eager"), ("--steps", 2), ("--decoder", "sd15-decoder"), ("--csv", "t.csv")):
        code, _, error = command(space_file, "--blocks", out, option, given)
        assert str(error) == f"{option}: ignored with --blocks; expected one of the two"
    code, _, error = command("vae_decoder", "--blocks", out)
    assert isinstance(error, InputError) and "--blocks: 'vae_decoder' holds decoders, not denoisers" in str(error)
