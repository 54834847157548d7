"""The autoencoder with a codebook: MoVQ's count, its latents in three forms, its loss, and its way into a study."""

import json

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import VQModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from nas.documents import strict
from nas.errors import InputError
from nas.networks.autoencoders import kl, vq
from nas.preparation import autoencoder as preparing
from nas.preparation import lessons
from nas.settings import design, study_file
from nas.training import autoencoders
from nas.training.autoencoders import Reconstruction
from nas.trial.bench import Bench
from nas.trial.checks import check
from nas.weights import parts

SMALL = {"codes": 7, "channels": 3, "widths": (32, 32)}
KINDS = ["quantised", "unquantised", "indices"]

MOVQ = {  # Kandinsky's, 67.83 M parameters
    "normalisation": "spatial",
    "codes": 16_384,
    "channels": 4,
    "widths": (128, 256, 256, 512),
    "blocks": 2,
    "attention": True,
}


def pictures(count=4, size=8, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def settings(path="scratch", **given):
    return vq.Settings(path=path, **{**SMALL, **given})


@pytest.fixture(scope="module")
def network():
    return vq.start(settings(), pictures(16)).eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("vq") / "vq.safetensors"
    autoencoders.write(network, pictures(16), path, {"made_for": "noise"})
    return path


def test_movq_has_the_published_count():
    """67.83 M, of which its spatial normalisation is 0.12 M."""
    with torch.device("meta"):
        movq, group = (
            VQModel(**vq.Architecture.built(vq.Settings(path="scratch", **{**MOVQ, **own})).model_dump())
            for own in ({}, {"normalisation": "group"})
        )
    counts = [sum(p.numel() for p in part.parameters()) for part in (movq, movq.encoder, movq.decoder, group.decoder)]
    assert [round(count / 1e6, 2) for count in counts] == [67.83, 27.40, 40.37, 40.25]
    assert counts[0] == 67_832_495


# --- latents ---------------------------------------------------------------------------------------------------------


def test_the_nearest_entry_is_diffusers_own(network):
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    _, _, (_, _, indices) = network.quantize(z)
    assert torch.equal(vq.nearest(z, network.quantize.embedding.weight).flatten(), indices)


@pytest.mark.parametrize("normalisation", ["group", "spatial"])
def test_copies_are_diffusers_own_in_all_three_forms(normalisation):
    model, x = vq.start(settings(normalisation=normalisation), pictures(16)).eval(), pictures()
    mean, std = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, 1.0, 2.0])
    made = {kind: vq.VqAutoencoder(model, kind, mean, std) for kind in KINDS}
    with torch.no_grad():
        z = model.encode(x).latents
        wanted = {"quantised": model.decode(z).sample, "unquantised": model.decode(z, force_not_quantize=True).sample}
    wanted["indices"] = wanted["quantised"]
    for kind, own in made.items():
        latents = own.encode(x)
        assert latents.shape == (4, own.channels, 4, 4) and own.factor == 2
        torch.testing.assert_close(own.decode(latents), wanted[kind].clamp(-1, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made["unquantised"].encode(x) * std.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1), z)
    assert [vq.codes(settings(latents=kind)) for kind in KINDS] == [None, None, 7]
    found = made["indices"].encode(x)
    assert set(found.flatten().tolist()) <= set(range(7))
    assert torch.equal(made["indices"].decode(found + 0.3), made["indices"].decode(found))
    far = made["quantised"].encode(x) + 1e-3  # what is drawn beside an entry is decoded as it
    torch.testing.assert_close(made["quantised"].decode(far), wanted["quantised"].clamp(-1, 1), atol=1e-5, rtol=1e-4)


def test_spatial_norms_that_do_nothing_are_group_norms(network):
    """SpatialNorm(f, z) = GN(f) y(z) + b(z), with y = 1 and b = 0."""
    plain = vq.untrained(settings(normalisation="group"))
    held = network.state_dict()
    own = {name.replace("spatial_norm", "group_norm").replace(".norm_layer.", "."): held[name] for name in held}
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    idle = vq.untrained(settings())
    idle.load_state_dict(network.state_dict())
    for name, parameter in idle.named_parameters():
        if "conv_y" in name or "conv_b" in name:
            torch.nn.init.constant_(parameter, float(name.endswith("conv_y.bias")))
    one, other = (vq.Decoder(model, "quantised", torch.zeros(1), torch.ones(1)) for model in (plain, idle))
    z = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(one(z), other(z))
    assert not torch.allclose(vq.Decoder(network, "quantised", torch.zeros(1), torch.ones(1))(z), one(z), atol=1e-3)


def test_how_full_a_codebook_is_is_what_its_indices_say(network, file):
    seen = pictures(16)
    indices = vq.load(settings(file, latents="indices")).encode(seen).long()
    used = vq.load(settings(file, latents="unquantised")).used(seen)
    assert used.tolist() == [int((indices == entry).sum()) for entry in range(7)]

    class Halves:
        def used(self, images):
            return torch.tensor([6, 6, 0, 0])

    assert preparing.codebook(Halves(), seen) == "codebook: 2 of 4 entries stand in them, perplexity 2"
    assert preparing.codebook(kl.load(kl.Settings(shipped="scenes")), seen) is None


def test_the_gradient_goes_straight_through_the_codebook(network):
    made = {kind: vq.Decoder(network, kind, torch.zeros(1), torch.ones(1)) for kind in KINDS}
    z = torch.randn(1, 3, 4, 4)
    entries = network.quantize.embedding(vq.nearest(z, network.quantize.embedding.weight)).movedim(3, 1)
    slopes = []
    for kind, at in (("quantised", z), ("unquantised", entries)):
        given = at.detach().requires_grad_()
        made[kind](given).sum().backward()
        slopes.append(given.grad)
    torch.testing.assert_close(*slopes)
    assert slopes[0].abs().max() > 0


# --- training --------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_a_vq_vae_with_its_quarter_at_the_entries(network):
    x, codebook = pictures(), network.quantize.embedding.weight
    loss = autoencoders.loss_of(network, x, torch.Generator())
    z = network.encode(x).latents
    e = codebook[vq.nearest(z, codebook)].movedim(3, 1)
    copies = network.decoder(network.post_quant_conv(z + (e - z).detach()), z + (e - z).detach())
    error = F.l1_loss(copies, x) + F.mse_loss(copies, x)
    whole = error + (e.detach() - z).square().mean() + 0.25 * (e - z.detach()).square().mean()
    assert float(loss.detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    (slope,) = torch.autograd.grad(loss, codebook, retain_graph=True)
    (wanted,) = torch.autograd.grad(0.25 * (e - z.detach()).square().mean(), codebook)
    torch.testing.assert_close(slope, wanted)  # the entries learn from nothing else
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, network.encoder.parameters()))


def test_a_new_codebook_has_entries_that_pictures_are_near():
    model, x = vq.start(settings(codes=16), pictures(16)), pictures(16)
    with torch.no_grad():
        used = [
            vq.nearest(one.encode(x).latents, one.quantize.embedding.weight)
            for one in (model, vq.untrained(settings()))
        ]
    assert len(used[0].unique()) >= 12 > len(used[1].unique())


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path):
    def begun():
        return Reconstruction(vq.start(settings(), pictures(16)), 4, batch=2)

    straight, first, second = begun(), begun(), begun()
    for made, updates in ((straight, 4), (first, 2)):
        for _ in range(updates):
            made.update(pictures(8))
    first.save(tmp_path / "checkpoint")
    second.restore(tmp_path / "checkpoint")
    for _ in range(2):
        second.update(pictures(8))
    one, other = (made.averaged().state_dict() for made in (straight, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_holds_the_network_and_the_scale_of_its_latents(file, network):
    for kind in KINDS:
        made = vq.load(settings(file, latents=kind))
        with torch.no_grad():
            expected = vq.VqAutoencoder(network, kind, made.mean, made.std).decode(made.encode(pictures()))
        torch.testing.assert_close(
            made.decode(made.encode(pictures())), expected, atol=2e-2, rtol=2e-2
        )  # of half precision
    latents = vq.load(settings(file, latents="unquantised")).encode(pictures(16))
    assert latents.mean((0, 2, 3)).abs().max() < 0.02
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(3), atol=0.02, rtol=0)


def test_a_folder_of_diffusers_is_read_without_a_scale(network, tmp_path):
    network.save_pretrained(tmp_path)
    made = vq.load(settings(tmp_path, latents="unquantised"))
    with torch.no_grad():
        torch.testing.assert_close(made.encode(pictures()), network.encode(pictures()).latents)


def test_what_cannot_be_is_one_line(file, tmp_path):
    other = tmp_path / "other.safetensors"
    config = json.dumps({**vq.Architecture.built(settings()).model_dump(), "norm_num_groups": 8})
    save_file(load_file(file), other, {"config": config, "latent_mean": "[0]", "latent_std": "[1]"})
    silent = tmp_path / "silent.safetensors"
    save_file(load_file(file), silent, {"config": config})
    (tmp_path / "empty").mkdir()
    for given, words in (
        (settings(file, codes=512), f"autoencoder.codes: 512, but {file} has 7; expected 7"),
        (settings(file, normalisation="group"), f"autoencoder.normalisation: group, but {file} has spatial; expected spatial"),
        (settings(file, widths=(32,)), rf"autoencoder.widths: \[32\], but {file} has \[32, 32\]"),
        (settings(tmp_path / "none.safetensors"), "autoencoder.path: .*none.safetensors: cannot be read as weights"),
        (settings(kl.SHIPPED["scenes"]), "autoencoder.path: .*scenes.safetensors cannot be read as weights of a VQ"),
        (settings(other), "autoencoder.path: .* its config: norm_num_groups: expected 32, got 8"),
        (settings(silent), "autoencoder.path: .*it does not say its latent_mean"),
        (settings(tmp_path / "empty"), "autoencoder.path: .*has no config.json"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words) as caught:
            vq.load(given)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="autoencoder.path: .*cannot be read as autoencoder weights"):
        kl.load(kl.Settings(path=file))
    for content, words in (
        ({}, "path: required"),
        ({"path": "x", "widths": [48]}, "widths.0: expected a multiple of 32"),
    ):
        with pytest.raises(ValidationError) as wrong:
            strict.validated(vq.Settings, content)
        assert strict.first_wrong(vq.Settings, wrong.value).startswith(words)


# --- in a study ------------------------------------------------------------------------------------------------------

STUDY = {
    "architecture": "mobilediffusion",
    "dataset": {"name": "scenes", "pictures": 64, "held_out_pictures": 64},
    "conditioning": {"encoder": "scenes"},
    "proxy": {"width_divisor": 16},
    "training": {"init": "scratch", "images_seen": 64},
    "evaluation": {"images": 8},
    "metrics": ["scene_accuracy"],
    "stopping": {"rungs": [1.0]},
}


def studied(folder):
    """One that names two files, of its own and of a cell, neither of which is there."""
    levels = {
        "spatial": {},
        "group": {"autoencoder.normalisation": "group", "autoencoder.path": str(folder / "group.safetensors")},
    }
    ablation = {"design": "factorial", "maximise": ["prompt_accuracy"], "repeats": 2}
    ablation["factors"] = {
        "norm": {"levels": levels},
        "latents": {"field": "autoencoder.latents", "levels": ["quantised", "unquantised"]},
    }
    own = {"name": "vq", "path": str(folder / "spatial.safetensors"), "widths": [32, 32, 32], "codes": 16}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "autoencoder": own, "ablation": ablation}))
    return study_file.load(path)


def test_files_of_cells_are_parts_too(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "TIMED", 1)
    monkeypatch.setattr(Reconstruction.__init__, "__defaults__", (2, 7e-4, 0))
    study = studied(tmp_path)
    named = parts.named(study)
    assert [part.path.stem for part in named] == ["spatial", "group"] and parts.absent(study) == named
    check.check(parts.stand_in(study, named), None)
    with pytest.raises(
        InputError, match=r"^autoencoder.path: .*spatial.safetensors: no such file; .*nas prepare STUDY"
    ):
        check.check(study, None)
    for part in named:
        preparing.make(part, Bench(design.changed(study, part.settings), tmp_path), 1e-6, lambda line: None)
        if part is named[0]:
            with pytest.raises(
                InputError,
                match="levels.group.autoencoder.path: cell 'latents=quantised, norm=group': .*group.safetensors: no such",
            ):
                check.check(study, None)
    assert {part.path: part.there for part in parts.named(study)} == dict.fromkeys([part.path for part in named], True)
    cells = {cell.name: design.changed(study, cell.settings) for cell in design.cells(study.ablation)}
    kept = {name: parts.fingerprints(cell)["autoencoder"] for name, cell in cells.items()}
    assert (
        len(set(kept.values())) == 2
        and kept["latents=quantised, norm=group"] != kept["latents=quantised, norm=spatial"]
    )
    assert len({Bench(cell, tmp_path).encoded_path("train") for cell in cells.values()}) == 4
    images = next(iter(Bench(study, tmp_path).images("held_out"))).images
    for cell in cells.values():
        made = Bench(cell, tmp_path).autoencoder
        assert made.decode(made.encode(images)).shape == images.shape
