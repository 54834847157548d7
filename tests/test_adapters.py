"""Edge maps against scipy, and structure adapters: nothing at first, gradients only where they may go, and that they learn."""

import adapters
import edges
import numpy as np
import pytest
import torch
from scipy import ndimage

from nas.diffusion.plan import Plan
from nas.diffusion.schedule import Settings, denoising_error, noise_schedule
from nas.diffusion.solvers import sample
from nas.errors import InputError
from nas.networks.backbones.unet import Config, Level
from nas.networks.conditioning import Text
from nas.training.encoded import EncodedSet


@pytest.fixture
def network():
    torch.manual_seed(0)
    levels = (
        Level(8, (0,), (0,)),
        Level(16, (0,), (0,)),
        Level(16, (1,), (1,), self_attention=True, cross_attention=True),
    )
    small = Config(levels, latent_channels=4, text_width=6, pooled_width=4, time_width=32, groups=4, head_dim=8)
    network = small.build()
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    return network.eval().requires_grad_(False)


def text_of(size):
    generator = torch.Generator().manual_seed(1)
    return Text(torch.randn(size, 3, 6, generator=generator), torch.randn(size, 4, generator=generator))


def test_edges_are_sobels():
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    grey = np.tensordot(images.numpy() / 2, np.array(edges.LUMA), axes=(1, 0))
    length = [np.hypot(ndimage.sobel(g, 0, mode="nearest"), ndimage.sobel(g, 1, mode="nearest")) for g in grey]
    expected = torch.tensor(np.array(length)[:, None] > edges.THRESHOLD).float()
    assert torch.equal(edges.edges(images), expected) and 0 < expected.mean() < 1
    assert edges.edges(torch.ones(1, 3, 8, 8)).sum() == 0


def test_agreement_is_the_boundary_measure_by_distance():
    found, wanted = ((torch.rand(20, 1, 12, 12) < 0.1).float() for _ in range(2))
    for tolerance in (0, 1, 2):
        got = edges.agreement(found, wanted, tolerance)
        for one, other, value in zip(found[:, 0].numpy(), wanted[:, 0].numpy(), got, strict=True):
            far = [ndimage.distance_transform_cdt(1 - side, "chessboard") for side in (other, one)]
            precision, recall = (near[side > 0] <= tolerance for near, side in zip(far, (one, other), strict=True))
            p, r = precision.mean(), recall.mean()
            assert float(value) == pytest.approx(2 * p * r / (p + r) if p + r else 0.0, abs=1e-6)


def test_agreement_at_the_ends():
    empty, line = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    line[..., 4] = 1
    assert edges.agreement(line, line) == 1 and edges.agreement(empty, empty) == 1
    assert edges.agreement(line, empty) == 0 and edges.agreement(empty, line) == 0
    assert edges.agreement(line.roll(1, -1), line) == 1 and edges.agreement(line.roll(2, -1), line) == 0


def test_a_new_adapter_changes_nothing_and_a_removed_one_leaves_nothing(network):
    adapter = adapters.Adapter(network, 8)
    maps, latents, time = torch.rand(2, 1, 64, 64), torch.randn(2, 4, 8, 8), torch.tensor([5, 900])
    before = network(latents, time, text_of(2))
    with adapters.plugged(network, adapter(maps)):
        assert torch.equal(network(latents, time, text_of(2)), before)
    torch.nn.init.normal_(adapter.outputs[1].weight)
    with adapters.plugged(network, adapter(maps)):
        assert not torch.equal(network(latents, time, text_of(2)), before)
    assert torch.equal(network(latents, time, text_of(2)), before)


def test_features_are_added_where_they_should_be(network):
    """A constant feature at the first place is a change of the first convolution's bias."""
    shift = torch.randn(1, network.conv_in.out_channels, 1, 1)
    nothing = [torch.zeros(2, place.out_channels, 1, 1) for place in adapters.places(network)[1:]]
    latents, time = torch.randn(2, 4, 8, 8), torch.tensor([5, 900])
    with adapters.plugged(network, [shift.expand(2, -1, 8, 8), *nothing]):
        got = network(latents, time, text_of(2))
    network.conv_in.bias += shift.flatten()
    torch.testing.assert_close(got, network(latents, time, text_of(2)))


def test_each_row_follows_its_own_map_under_guidance(network):
    adapter = adapters.Adapter(network, 8)
    for output in adapter.outputs:
        torch.nn.init.normal_(output.weight)
    maps, noise = torch.rand(3, 1, 64, 64), torch.randn(3, 4, 8, 8)
    schedule = dict(noise_schedule(Settings()).config)
    plan, null = Plan(steps=2, guidance=3.0), Text(torch.zeros(1, 3, 6), torch.zeros(1, 4))

    def drawn(rows):
        text = text_of(3)
        with adapters.plugged(network, adapter(maps[rows])):
            return sample(network, plan, schedule, noise[rows], Text(text.tokens[rows], text.pooled[rows]), null)

    together = drawn(slice(0, 3))
    alone = torch.cat([drawn(slice(row, row + 1)) for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_training_moves_the_adapter_alone_and_lowers_the_loss(network, tmp_path):
    """Latents that are the map: the denoiser cannot know them, the adapter can."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 2, (16, 1, 8, 8), generator=generator).float()
    maps, text = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3), text_of(2)
    latents = (2 * coarse - 1).expand(-1, 4, -1, -1).contiguous()
    data = EncodedSet(latents, torch.zeros(16, dtype=torch.int64), ("a", ""), text.tokens.half(), text.pooled.half())
    schedule = noise_schedule(Settings())
    adapter = adapters.Adapter(network, 8, width=8)
    time, noise = torch.full((16,), 900), torch.randn(latents.shape, generator=generator)

    @torch.no_grad()
    def loss():
        with adapters.plugged(network, adapter(maps)):
            error = denoising_error(network, schedule, latents, data.text(torch.arange(16)), time, noise)
        return float(error.mean())

    before, frozen = loss(), {name: value.clone() for name, value in network.state_dict().items()}
    adapters.train(adapter, network, schedule, data, maps, adapters.Recipe(640, 16, 1e-2))
    assert loss() < 0.9 * before
    assert all(torch.equal(value, frozen[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())

    adapters.save(adapter, tmp_path / "a.safetensors", {})
    again = adapters.Adapter(network, 8, width=8)
    adapters.load(again, tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again(maps), adapter(maps), strict=True))
    with pytest.raises(InputError, match=r"a\.safetensors: not an adapter of this network"):
        adapters.load(adapters.Adapter(network, 8, width=16), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="multiples of 8"):
        adapter(torch.zeros(1, 1, 60, 64))
