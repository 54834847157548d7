"""The scripts of studies that are more than a study file: their cells, their costs on paper, and their tables."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from scipy import stats

from nas.datasets import scenes
from nas.networks.autoencoders import kl
from nas.networks.decoders.kl import pruning
from nas.settings import study_file
from nas.training.decoders import decoded, psnr

STUDIES = Path(__file__).parents[1] / "studies"


def script(name):
    path = STUDIES / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def vae():
    return script("vae_decoder/train.py")


def test_the_full_decoder_is_the_shipped_one_and_an_eighth_of_what_is_deployed(vae, tmp_path, monkeypatch):
    autoencoder = kl.load(kl.Settings())
    full = pruning.of_autoencoder(autoencoder.model)
    pictures = torch.rand(4, 3, 64, 64) * 2 - 1
    monkeypatch.setattr(vae, "CACHE", tmp_path / "latents.safetensors")
    first, again = (vae.cached_latents(autoencoder, {"train": pictures})["train"] for _ in range(2))
    latents = vae.encoded(autoencoder, pictures)
    assert torch.equal(first, latents) and torch.equal(again, latents)
    shipped = autoencoder.decode(autoencoder.encode(pictures))
    torch.testing.assert_close(decoded(full, latents), shipped, rtol=1e-3, atol=1e-4)
    assert psnr(shipped, shipped + 1e-3) == pytest.approx(66.02, abs=0.01)  # 20 log10(2 / 0.001)

    deployed = vae.deployed(full.config)
    assert [level.channels for level in deployed.levels] == [128, 256, 512, 768] and deployed.groups == 32
    costs = {cell: vae.costs(pruning.pruned(full, *how).config) for cell, how in vae.CELLS.items()}
    assert costs["full"]["params"] == sum(p.numel() for p in deployed.build().parameters())
    narrow, short = costs["half the width"], costs["half the width, one block"]
    assert 3.8 < costs["full"]["macs"] / narrow["macs"] < 4.0  # a quarter, but for the first and last convolutions
    assert short["macs"] < narrow["macs"] and short["params"] < narrow["params"]


def test_tables_of_the_decoders(vae, capsys):
    rows = [
        {
            "cell": cell,
            "factor.decoder": cell,
            "repeat": repeat,
            "state": "complete",
            "psnr_db": 25.0 - 2 * place + 0.1 * repeat,
        }
        | {"fid_efficientnet_lite0": 9.0 + place, "cpu_ms": 4.0 - place, "proxy_cpu_ms": 2.0}
        for place, cell in enumerate(vae.CELLS)
        for repeat in range(3)
    ]
    vae.show(pd.DataFrame(rows))
    told = capsys.readouterr().out
    assert "psnr_db" in told and "-2.000" in told and "worse" in told


def test_the_median_of_measured_times(vae, monkeypatch):
    clock = iter([0, 1, 10, 15, 20, 22])  # 1, 5 and 2 seconds
    monkeypatch.setattr(vae.time, "process_time", lambda: next(clock))
    assert vae.cpu_ms(torch.nn.Identity(), torch.zeros(1), 3) == 2000


def test_plug_in_cells_are_those_of_the_study_file():
    transfer = script("plug_in_transfer/transfer.py")
    study = study_file.load(STUDIES / "plug_in_transfer")
    assert transfer.REFERENCE in study.ablation.factors["reconstruction"].names
    assert transfer.STYLE not in study.dataset.settings("datasets").styles
    assert transfer.FID in study.ablation.minimise


def test_the_autoencoders_that_are_made_are_those_that_are_compared():
    make, study = script("latent_channels/make.py"), study_file.load(STUDIES / "latent_channels")
    levels = study.ablation.factors["channels"].levels
    assert {str(make.FOLDER / f"c{n}.safetensors") for n in make.CHANNELS} == {
        level["autoencoder.path"] for level in levels.values()
    }


def test_where_objects_of_the_world_lie_is_found_in_its_pictures():
    """All prompts are right, and the share of objects on the left is that of the centres the pictures were drawn by."""
    plug_ins = script("one_step_league/plug_ins.py")
    study = study_file.load(STUDIES / "one_step_league")
    pictures = scenes.load(study.dataset.settings("datasets"), "train")
    batch, (layout, *_) = pictures.batch(0, 96), pictures.drawn(0, 96)
    clear = torch.from_numpy(abs(layout.centre[:, 0, 0] - 0.5) > 0.02)  # a mirror-symmetric shape is found to a pixel
    captions = [caption for caption, kept in zip(batch.captions, clear.tolist(), strict=True) if kept]
    found = plug_ins.seen(batch.images[clear], captions)
    assert found["right"] > 0.95 and found["one_object"] == 1
    assert found["left"] == pytest.approx((layout.centre[clear.numpy(), 0, 0] < 0.5).mean(), abs=0.03)
    wrong = plug_ins.seen(batch.images[clear], captions[::-1])
    assert wrong["right"] < 0.2 and wrong["left"] == found["left"]
    assert set(plug_ins.CELLS) <= set(study.ablation.factors["method"].names)


def test_the_ways_at_equal_cost_are_compared_by_repeat():
    """Against a second implementation of the paired interval, and every cell of the study stands on one side."""
    ways = script("architecture_and_plan/at_equal_cost.py")
    results = pd.read_csv(ways.RESULTS)
    found = ways.table(results)
    assert {*found["way"], *found["against"]} == set(results["factor.way"])
    by_repeat = results.set_index(["factor.way", "repeat"])["prompt_accuracy"] * 100
    for _, row in found.iterrows():
        difference = by_repeat[row["way"]] - by_repeat[row["against"]]
        low, high = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
        assert (row["low"], row["high"]) == (round(low, 1), round(high, 1))


def test_the_rounds_of_the_evolution_chosen_again_by_milliseconds(monkeypatch):
    monkeypatch.chdir(STUDIES.parent)  # the study's table of blocks is named from there
    made = pd.DataFrame(script("evolution/by_latency.py").rows(STUDIES / "evolution"))
    written = pd.read_csv(STUDIES / "evolution" / "by_latency.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(made, written, check_dtype=False, rtol=1e-5)
    blocks = json.loads((STUDIES / "evolution" / "blocks.json").read_text())["milliseconds"]
    stack = next(ms for name, ms in blocks.items() if name.startswith("transformer 16px"))
    assert written["latency_ms"].diff()[1] == pytest.approx(-3 * stack, rel=1e-4)  # three of these and nothing else
    assert (written["removed_by_latency"] == written["removed_by_macs"]).all()


def test_sizes_of_fluid_are_paired_by_repeat_over_both_orders(capsys):
    within = script("fluid/within.py")
    rows = pd.read_csv(STUDIES / "fluid" / "results.csv").to_dict("records")
    gaps = []
    for repeat in range(3):
        mean = {}
        for size in ("small", "large"):
            mine = [
                row["denoising_loss"]
                for row in rows
                if (row["factor.tokens"], row["factor.size"], row["repeat"]) == ("discrete", size, repeat)
            ]
            assert len(mine) == 2
            mean[size] = sum(mine) / 2
        gaps.append(mean["large"] - mean["small"])
    low, high = stats.t.interval(0.95, 2, sum(gaps) / 3, stats.sem(gaps))
    within.main()
    assert f"large - small       {sum(gaps) / 3:.3f} [{low:.3f}, {high:.3f}], Holm 0.031" in capsys.readouterr().out
