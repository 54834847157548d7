"""Graphs of a plan that keeps units: they draw what PyTorch draws with units kept in place, on ONNX Runtime and without nas."""

import json
from dataclasses import replace

import converted
import exported
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nas.cli import app
from nas.cost.units import COMPUTE
from nas.deploy import drawer, export, graphs, step_graphs
from nas.deploy.contents import export_folder
from nas.deploy.speed import latency
from nas.diffusion import solvers
from nas.diffusion.caches import cache_schedules
from nas.diffusion.plan import Plan
from nas.errors import InputError
from nas.networks.backbones import Proxy, presets
from nas.networks.conditioning import Text
from nas.objectives import denoising

STEPS, SIDE, TOKENS = 4, 16, 5
KEPT = ["sampling.solver=dpm++", "sampling.steps=4", "sampling.cache={name: fora, every: 2}"]


def denoiser_of(name):
    """The graph of a small network of a family, and its units."""
    config = presets()[name].scaled(Proxy(16, 8, 24, 16))
    config = replace(config, depth=6) if name == "pixart" else config
    network = exported.randomised(config.build())
    return graphs.denoiser(network, (config.latent_channels, SIDE, SIDE), (TOKENS, 24), 16), config.units(SIDE, TOKENS)


def plans(units):
    """The heuristics that keep outputs as they were, and random schedules."""
    found = [preset for preset in cache_schedules.presets(STEPS, units) if not preset.extrapolates][::8]
    for seed in range(2):
        random = np.random.default_rng(seed).integers(COMPUTE, 1, (STEPS, len(units))).astype(np.int8)
        found.append(cache_schedules.written(random, units))
    return [Plan(solver="dpm++", steps=STEPS, cache=cache) for cache in found]


@pytest.mark.parametrize("name", ["mobilediffusion", "pixart"])
def test_networks_that_take_turns_draw_what_one_that_keeps_units_draws(name):
    """Bit for bit; every drawing twice, as nothing may be left of the first."""
    denoiser, units = denoiser_of(name)
    schedule = dict(denoising.noise_schedule(denoising.Settings()).config)
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, *one.shape[1:]) for one in denoiser.random_inputs(1) if one.is_floating_point()]
    noise, tokens, pooled = (torch.randn(shape, generator=generator) for shape in shapes)
    text, null = Text(tokens, pooled), Text(tokens[:1] * 0, pooled[:1] * 0)
    network = denoiser.module.network
    for plan in plans(units):
        made, steps = step_graphs.of_plan(denoiser, plan, units)
        by_step = step_graphs.ByStep({graph.name: graph.run for graph in made}, steps, plan)
        wanted = solvers.sample(network, plan, schedule, noise, text, null)
        for _ in range(2):
            assert torch.equal(solvers.sample(by_step, plan, schedule, noise, text, null, by_step), wanted)
        assert not by_step.held and len(made) <= len(steps) == STEPS
        assert not any(set(step.taken) & set(step.kept) for step in steps)


def test_every_other_step_needs_two_graphs():
    denoiser, units = denoiser_of("mobilediffusion")
    made, steps = step_graphs.of_plan(denoiser, Plan(steps=STEPS, cache={"name": "deepcache", "every": 2}), units)
    assert [step.network for step in steps] == ["denoiser_0", "denoiser_1"] * 2 and len(made) == 2
    (kept,) = {step.kept for step in steps if step.kept}
    assert kept == steps[1].taken and steps[0].taken == ()
    assert made[1].inputs == (*denoiser.inputs, *(f"taken.{unit}" for unit in kept))


# --- exported --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = exported.run_directory(tmp_path_factory.mktemp("runs") / "kept" / "2026", overrides=KEPT)
    with converted.shared(tmp_path_factory):
        return export.export(run, "trial:0", formats=("safetensors", "onnx"))


def test_an_export_draws_the_same_on_onnx_runtime_and_without_nas(folder):
    held = export_folder.manifest(folder)["formats"]["onnx"]["fp32"]
    assert len(held["steps"]) == 4 and held["pictures"]["max_difference"] < 1e-4
    kept, whole = (held["networks"][part]["bytes"] for part in ("denoiser_1", "denoiser"))
    assert kept < 0.8 * whole  # without the weights of what it takes over
    ours, theirs = (drawer.load(folder, runtime).draw(exported.CAPTIONS, 3) for runtime in ("pytorch", "onnxruntime"))
    assert (ours - theirs).abs().max() < 1e-4
    alone = exported.draw_py(folder)["draw"]
    np.testing.assert_allclose(alone(exported.CAPTIONS, seed=3).transpose(0, 3, 1, 2), ours, atol=1e-4)
    plain = Plan(solver="dpm++", steps=4)
    uncached = drawer.load(folder, "onnxruntime")
    noise = torch.randn(1, *uncached.latents, generator=torch.Generator().manual_seed(0))
    text = uncached.encode(["pizza, fluent"])
    assert not torch.equal(uncached.sample(noise, text, plain), uncached.sample(noise, text))


def test_the_graphs_say_what_they_are(folder):
    onnx = pytest.importorskip("onnx")
    held = export_folder.manifest(folder)["formats"]["onnx"]["fp32"]
    step = held["steps"][1]
    model = onnx.load(folder / held["networks"][step["network"]]["file"])
    names = [value.name for value in model.graph.input]
    assert names == ["latents", "time", "tokens", "pooled", *(f"taken.{unit}" for unit in step["taken"])]
    steps = json.loads((folder / "draw.json").read_text())["steps"]
    assert [{key: one[key] for key in step} for one, step in zip(steps, held["steps"], strict=True)] == held["steps"]


def test_latency_is_of_the_graphs_that_take_turns(folder):
    """As many calls as the plan has; and a runtime that the export has no files for is refused."""
    what = latency.subject(str(folder), 64, None)
    row = latency.measure(what, "onnxruntime", 1, 2)
    assert row.runtime == "onnxruntime" and row.denoiser_ms > 0 and row.steps == 8
    with pytest.raises(InputError, match="compile cannot draw by the plan of .*; expected among eager, onnxruntime"):
        latency.measure(what, "compile", 1, 1)


def test_bad_input(folder, tmp_path):
    drawing = CliRunner().invoke(
        app,
        ["sample", str(folder), "pizza", "--runtime", "onnxruntime", "--steps", "3", "--out", str(tmp_path / "p.png")],
    )
    assert "the graphs keep units by a plan of 4 evaluations, got one of 3" in str(drawing.exception)
    extrapolating = [*KEPT[:2], "sampling.cache={name: taylorseer, every: 2}"]
    run = exported.run_directory(tmp_path / "taylor" / "2026", overrides=extrapolating)
    with pytest.raises(InputError, match=r"format: onnx keeps .* the plan extrapolates \(cache: taylorseer\)"):
        export.export(run, "trial:0", formats=("onnx",))
    run = exported.run_directory(tmp_path / "kept" / "2026", overrides=KEPT)
    with pytest.raises(InputError, match="quantise int8: not of a plan that keeps units"):
        export.export(run, "trial:0", formats=("onnx",), quantised=True)
    assert not (run.path / "export").exists()
    denoiser, units = denoiser_of("pixart")
    with pytest.raises(InputError, match="extrapolates, which only PyTorch does"):
        step_graphs.of_plan(denoiser, Plan(steps=4, cache={"name": "taylorseer", "every": 2}), units)
