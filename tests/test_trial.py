"""One rung in a worker, on made-up latents: what a trial leaves behind when it trains adapters against a discriminator."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from nas import failures, machine
from nas.failures import Diverged
from nas.networks import lora
from nas.networks.backbones.unet import Config, Level
from nas.settings import study_file
from nas.training.encoded import EncodedSet
from nas.trial.bench import Bench
from nas.trial.rung import CHECKPOINT, Job, run_on

STUDY = """
name: small
space: mobilediffusion
dataset: emoji
proxy: {width_divisor: 32}
objective: {name: ufogen, reconstruction: ema_distill}
training: {batch: 4, warmup_images: 0, lora: {rank: 2}}
sampling: {solver: one_step}
evaluation: {images: 4}
search: {minimise: [macs]}
"""
NETWORK = Config((Level(320, (0,), (0,)), Level(640, (1,), (1,), self_attention=True, cross_attention=True)))


class Pictures:
    """A decoder: three of the latents' channels."""

    def decode(self, latents):
        return latents[:, :3].clamp(-1, 1)


class Small(Bench):
    """A bench whose data are random numbers and whose metrics are none."""

    def prepare(self):
        generator = torch.Generator().manual_seed(0)
        tokens, pooled = torch.randn(7, 3, 6, generator=generator), torch.randn(7, 4, generator=generator)
        latents = torch.randn(12, 4, 8, 8, generator=generator)
        captions = (*map(str, range(6)), "")
        self.train_data = EncodedSet(latents, torch.arange(12) % 6, captions, tokens.half(), pooled.half())
        self.held_out_data, self.metrics, self.autoencoder = self.train_data, [], Pictures()
        self.drawn = list(captions[:4]), self.train_data.text(torch.arange(4)), latents[:4]


@pytest.fixture
def bench(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return Small(study_file.load(path), tmp_path)


def rung(bench, folder, images, number=0, network=NETWORK):
    folder.mkdir(exist_ok=True)
    return run_on(bench, Job(0, network.to_dict(), 7, number, images, folder))


def test_adapters_are_saved_beside_a_plain_network(bench, tmp_path):
    first = rung(bench, tmp_path / "parts", 8)
    second = rung(bench, tmp_path / "parts", 24, number=1)
    rung(bench, tmp_path / "whole", 24)
    parts, whole = (load_file(tmp_path / name / "weights.safetensors") for name in ("parts", "whole"))
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in parts)

    proxy = Config.from_dict(second["proxy"])
    plain = proxy.build()
    plain.load_state_dict(parts)  # an ordinary network
    start = bench.network(proxy, 7)
    moved = [name for name, value in start.state_dict().items() if not torch.equal(value, parts[name])]
    assert moved and all(name.endswith(".weight") for name in moved)
    lora.adapt(start, bench.study.training.lora, 0)
    lora.load(start, tmp_path / "parts" / "adapters.safetensors")
    for name, value in lora.merged(start).state_dict().items():
        torch.testing.assert_close(value, parts[name])
    adapters = load_file(tmp_path / "parts" / "adapters.safetensors")
    assert all("lora_" in name for name in adapters)

    assert (
        first["rung"]["passes"] == second["rung"]["passes"] == 9.5
    )  # of ema_distill, and its critic's every second turn

    logged = {"generator_loss", "critic_loss", "generator_gradient_norm", "critic_gradient_norm"}
    logged |= {"critic_accuracy_fake", "critic_accuracy_real", "gan_loss_gen", "reconstruction_loss"}
    assert first["rung"]["training"].keys() == second["rung"]["training"].keys() == logged
    assert [(found["rung"]["threads"], found["rung"]["device"]) for found in (first, second)] == [
        (bench.study.worker_threads, machine.computing_device())
    ] * 2
    assert (tmp_path / "parts" / "samples.png").exists()
    assert (tmp_path / "parts" / "samples_0.png").exists()
    assert (tmp_path / "parts" / CHECKPOINT).exists()  # until the last record is kept


def test_pictures_that_are_no_numbers_are_the_trials_end(bench, tmp_path):
    """Said with their name, before a metric sees them."""
    bench.prepare()
    bench.prepare = lambda: None
    bench.metrics = [SimpleNamespace(reset=lambda: None)]  # cannot be updated
    bench.autoencoder = SimpleNamespace(decode=lambda latents: latents[:, :3] * float("nan"))
    with pytest.raises(Diverged, match="the drawn pictures are not finite numbers") as caught:
        rung(bench, tmp_path / "nan", 8)
    assert failures.reason(caught.value) == "the drawn pictures are not finite numbers"
