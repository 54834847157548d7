import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nas import menu
from nas.assets import make_autoencoder
from nas.datasets import emoji
from nas.errors import InputError
from nas.networks.autoencoders import kl

FACTOR, CHANNELS = 4, make_autoencoder.LATENT_CHANNELS


def pictures(count, size=32, seed=0):
    """Smooth ones, so that latents differ from picture to picture."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").clamp(-1, 1)


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_autoencoder.network(FACTOR).eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    """A random autoencoder as the script that makes the shipped one writes it."""
    path = tmp_path_factory.mktemp("autoencoder") / "autoencoder.safetensors"
    make_autoencoder._finish(network, FACTOR, "emoji", pictures(40, 64), pictures(4, 64), path, {"steps": 0})
    return path


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("autoencoder") / "diffusers"
    network.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["file", "folder"])
def autoencoder(request):
    return kl.load(kl.Settings(path=request.getfixturevalue(request.param)))


def test_the_menu_offers_them():
    assert menu.names("autoencoders") == ["kl", "vq"]


def test_shapes(autoencoder):
    assert (autoencoder.factor, autoencoder.channels) == (FACTOR, CHANNELS)
    latents = autoencoder.encode(pictures(3))
    assert latents.shape == (3, CHANNELS, 8, 8) and latents.dtype == torch.float32 and not latents.requires_grad
    images = autoencoder.decode(latents)
    assert images.shape == (3, 3, 32, 32) and images.min() >= -1 and images.max() <= 1
    assert autoencoder.encode(pictures(1, 48)).shape == (1, CHANNELS, 12, 12)


def test_encoding_is_deterministic_and_decoding_stays_in_range(autoencoder):
    assert torch.equal(autoencoder.encode(pictures(2)), autoencoder.encode(pictures(2)))
    assert autoencoder.decode(1e3 * torch.ones(1, CHANNELS, 4, 4)).abs().max() <= 1


def test_latents_of_the_training_pictures_have_zero_mean_and_unit_variance(file):
    latents = kl.load(kl.Settings(path=file)).encode(make_autoencoder.shrink(pictures(40, 64), FACTOR))
    assert latents.mean((0, 2, 3)).abs().max() < 0.02  # weights are kept in half precision
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(CHANNELS), atol=0.02, rtol=0)


def test_a_file_holds_the_network_it_was_made_of(file, network):
    autoencoder, x = kl.load(kl.Settings(path=file)), pictures(4)
    with torch.no_grad():
        raw = network.encode(x).latent_dist.mean
        drawn = network.decode(raw).sample.clamp(-1, 1)
    latents = autoencoder.encode(x)
    torch.testing.assert_close(latents * autoencoder.std + autoencoder.mean, raw, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(autoencoder.decode(latents), drawn, atol=2e-2, rtol=2e-2)


def test_a_folder_is_scaled_as_stable_diffusion_does(folder, network):
    """(z - shift) * scaling_factor on the way in, z / scaling_factor + shift on the way out."""
    autoencoder, x = kl.load(kl.Settings(path=folder)), pictures(4)
    with torch.no_grad():
        raw = network.encode(x).latent_dist.mean
        drawn = network.decode(raw).sample.clamp(-1, 1)
    latents = autoencoder.encode(x)
    torch.testing.assert_close(latents, (raw - 0.25) * 0.5)
    torch.testing.assert_close(autoencoder.decode(latents), drawn)


def test_the_shipped_one_draws_emoji_again():
    autoencoder = kl.load(kl.Settings())
    images = next(iter(emoji.load(emoji.Settings(limit=32), "held_out"))).images
    latents = autoencoder.encode(images)
    error = (autoencoder.decode(latents) - images).square().mean((1, 2, 3))
    assert latents.shape == (32, autoencoder.channels, 64 // autoencoder.factor, 64 // autoencoder.factor)
    assert latents.std() == pytest.approx(1, abs=0.15) and latents.mean().abs() < 0.15
    with safe_open(kl.SHIPPED["emoji"], "pt") as file:
        quality = json.loads(file.metadata()["quality"])
    assert (10 * torch.log10(4 / error)).mean() == pytest.approx(quality["held_out_psnr_db"], abs=2)  # of 32 pictures


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(30, 32), (32, 30)])
def test_sizes_that_do_not_divide_are_refused(autoencoder, size):
    with pytest.raises(InputError, match="30 is not divisible by the autoencoder's 4"):
        autoencoder.encode(torch.zeros(1, 3, *size))


def rewritten(file, path, drop=(), weights=None, **metadata):
    """The file again with other metadata or weights."""
    with safe_open(file, "pt") as opened:
        kept = {name: value for name, value in {**opened.metadata(), **metadata}.items() if name not in drop}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    save_file(weights or tensors, path, kept)


SPOIL = {
    "missing": lambda file, path: None,
    "no safetensors": lambda file, path: path.write_bytes(b"no weights at all"),
    "empty": lambda file, path: path.write_bytes(b""),
    "cut off": lambda file, path: path.write_bytes(file.read_bytes()[:-100]),
    "no config": lambda file, path: rewritten(file, path, drop=("config",)),
    "no mean": lambda file, path: rewritten(file, path, drop=("latent_mean",)),
    "config is no json": lambda file, path: rewritten(file, path, config="{"),
    "config of nothing": lambda file, path: rewritten(file, path, config="{}"),
    "std is no json": lambda file, path: rewritten(file, path, latent_std="[1, "),
    "std of other channels": lambda file, path: rewritten(file, path, latent_std="[1, 2]"),
    "other weights": lambda file, path: rewritten(file, path, weights={"weight": torch.zeros(1)}),
    "mean is a mapping": lambda file, path: rewritten(file, path, latent_mean='{"0": 1}'),
}
CONFIGS = {  # of both kinds of file
    "layers": ({"layers_per_block": 10**7}, "layers_per_block: expected less than or equal to 64, got 10000000"),
    "no layers": ({"layers_per_block": 0}, "layers_per_block: expected greater than or equal to 1, got 0"),
    "layers in words": ({"layers_per_block": "2"}, "layers_per_block: expected "),
    "width": (
        {"block_out_channels": [10**9]},
        "block_out_channels.0: expected less than or equal to 8192",
    ),
    "levels": ({"block_out_channels": [32] * 99}, "block_out_channels: expected "),
    "no levels": ({"block_out_channels": []}, "block_out_channels: expected "),
    "latents": ({"latent_channels": 10**9}, "latent_channels: expected less than or equal to 8192"),
    "groups": ({"norm_num_groups": 0}, "norm_num_groups: expected greater than or equal to 1"),
    "groups that do not divide": ({"norm_num_groups": 7}, "must be divisible by num_groups (7)"),
    "activation": ({"act_fn": 5}, ""),
    "size": ({"sample_size": "x"}, ""),
    "a list": ([], "down_block_types: required"),
    "deep": (None, "maximum recursion depth"),
}


@pytest.mark.parametrize("how", CONFIGS)
def test_a_configuration_of_no_autoencoder_is_refused_before_one_is_built(how, network, file, tmp_path):
    changed, words = CONFIGS[how]
    network.save_pretrained(tmp_path / "spoilt")
    whole = json.loads((tmp_path / "spoilt" / "config.json").read_text())
    text = "[" * 100_000 if changed is None else json.dumps({**whole, **changed} if changed else changed)
    (tmp_path / "spoilt" / "config.json").write_text(text)
    rewritten(file, tmp_path / "spoilt.safetensors", config=text)
    for path in (tmp_path / "spoilt", tmp_path / "spoilt.safetensors"):
        with pytest.raises(InputError) as error:
            kl.load(kl.Settings(path=path))
        assert str(error.value).startswith(f"autoencoder.path: {path}")
        assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("factor", [0, None, "x"])
def test_a_scaling_factor_that_scales_nothing_is_one_line(factor, network, tmp_path):
    network.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scaling_factor": factor}))
    with pytest.raises(InputError, match=r"autoencoder\.path: .*scaling_factor: expected") as error:
        kl.load(kl.Settings(path=tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", SPOIL)
def test_an_unreadable_file_is_named(how, file, tmp_path):
    path = tmp_path / "spoilt.safetensors"
    SPOIL[how](file, path)
    with pytest.raises(InputError, match=r"autoencoder\.path: .*spoilt\.safetensors") as caught:
        kl.load(kl.Settings(path=path))
    assert "\n" not in str(caught.value)


FOLDERS = {
    "no config": lambda path: (path / "config.json").unlink(),
    "bad config": lambda path: (path / "config.json").write_text("{"),
    "no weights": lambda path: (path / "diffusion_pytorch_model.safetensors").unlink(),
    "bad weights": lambda path: (path / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights at all"),
    "other weights": lambda path: save_file(
        {"encoder.conv_in.weight": torch.zeros(1)}, path / "diffusion_pytorch_model.safetensors"
    ),
}


@pytest.mark.parametrize("how", FOLDERS)
def test_an_unreadable_folder_is_named(how, network, tmp_path):
    network.save_pretrained(tmp_path / "spoilt")
    FOLDERS[how](tmp_path / "spoilt")
    with pytest.raises(InputError, match=r"autoencoder\.path: .*spoilt") as caught:
        kl.load(kl.Settings(path=tmp_path / "spoilt"))
    assert "\n" not in str(caught.value)


NOT_READ = {
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "auto_map": {"AutoModel": "own.Own"},
    "trust_remote_code": True,
    "layers_per_block": 10**7,
    "scaling_factor": 0,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "_class_name": "AutoencoderTiny",
}


@pytest.mark.parametrize("key", NOT_READ)
@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_configuration_is_data(file, network, tmp_path, form, key):
    """Only the arguments of the autoencoder itself, in their bounds."""
    path = tmp_path / "spoilt"
    if form == "folder":
        network.save_pretrained(path)
        config = json.loads((path / "config.json").read_text()) | {key: NOT_READ[key]}
        (path / "config.json").write_text(json.dumps(config))
    else:
        with safe_open(file, "pt") as opened:
            config = json.loads(opened.metadata()["config"]) | {key: NOT_READ[key]}
        rewritten(file, path, config=json.dumps(config))
    with pytest.raises(InputError, match=rf"autoencoder\.path: .*spoilt.*: {key}[:.]") as caught:
        kl.load(kl.Settings(path=path))
    assert "\n" not in str(caught.value)


def test_another_number_of_latent_channels_begins_with_the_shipped_weights():
    shipped = kl.load(kl.Settings()).model
    for channels in (4, 8):
        torch.manual_seed(3)
        model = make_autoencoder.network(8, channels, kl.SHIPPED["emoji"])
        assert model.config["latent_channels"] == channels
        theirs = shipped.state_dict()
        afresh = {name for name, value in model.state_dict().items() if not torch.equal(value, theirs[name])}
        weights = {name for name in afresh if name.endswith("weight")}
        assert weights == {f"{layer}weight" for layer in make_autoencoder.AT_LATENTS}


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InputError, match="--start .*another autoencoder"):
        make_autoencoder.network(4, 8, kl.SHIPPED["emoji"])
    with pytest.raises(InputError, match="--start .*cannot be read"):
        make_autoencoder.network(8, 8, tmp_path / "none.safetensors")
