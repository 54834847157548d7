import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nas.documents.section import Section
from nas.errors import InputError
from nas.networks import lora
from nas.networks.backbones.unet import Config, Level
from nas.networks.conditioning import Text

SMALL = Config(
    (Level(8, (0,), (0,)), Level(16, (1,), (1,), self_attention=True, cross_attention=True, conv="separable")),
    latent_channels=2,
    text_width=6,
    pooled_width=4,
    time_width=32,
    groups=4,
    head_dim=8,
)
RANK = lora.Lora(rank=4)


@pytest.fixture(scope="module")
def trained():
    """A small UNet none of whose weights are zero, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SMALL.build()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return network.eval()


@pytest.fixture
def network(trained):
    return copy.deepcopy(trained)


@torch.no_grad()
def prediction(network):
    generator = torch.Generator().manual_seed(1)
    text = Text(torch.randn(2, 3, 6, generator=generator), torch.randn(2, 4, generator=generator))
    return network(torch.randn(2, 2, 8, 8, generator=generator), torch.tensor([10, 900]), text)


def disturb(network):
    """As if the adapters had been trained."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


def test_an_adapted_network_is_what_it_was_and_trains_adapters_alone(network, trained):
    lora.adapt(network, RANK, seed=0)
    assert torch.equal(prediction(network), prediction(trained))
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    layers = [m for m in trained.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.groups == 1)]
    assert len(names) == 2 * len(layers)
    assert any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in trained.modules())  # these stay as they are
    # A: rank rows over the inputs (with the kernel); B: outputs by rank
    expected = sum(RANK.rank * (layer.weight[0].numel() + len(layer.weight)) for layer in layers)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected


def test_merged_is_a_plain_network_with_the_same_outputs(network, trained):
    lora.adapt(network, lora.Lora(rank=4, alpha=8), seed=0)
    disturb(network)
    adapted = prediction(network)
    assert (adapted - prediction(trained)).abs().max() > 0.01  # the adapters matter
    plain = lora.merged(network)
    torch.testing.assert_close(prediction(plain), adapted, atol=1e-5, rtol=0)
    assert plain.state_dict().keys() == trained.state_dict().keys()
    assert [type(m) for m in plain.modules()] == [type(m) for m in trained.modules()]
    assert torch.equal(prediction(network), adapted)  # the adapted one goes on as it was
    before = network.state_dict()
    a, b = before["conv_in.lora_A.default.weight"], before["conv_in.lora_B.default.weight"]
    by_hand = trained.conv_in.weight + 8 / 4 * torch.einsum("or,rikl->oikl", b.squeeze(3).squeeze(2), a)
    torch.testing.assert_close(plain.conv_in.weight, by_hand)


def test_a_network_without_adapters_merges_to_itself(network):
    assert lora.merged(network) is network


def test_the_same_seed_starts_the_same_adapters(trained):
    states = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(noise)  # the global generator has no say
        network = copy.deepcopy(trained)
        lora.adapt(network, RANK, seed)
        states.append(network.state_dict()["conv_in.lora_A.default.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_adapters_alone_are_saved_and_read_back(network, trained, tmp_path):
    lora.adapt(network, RANK, seed=0)
    disturb(network)
    lora.save(network, tmp_path / "adapters.safetensors", {"note": "x"})
    tensors = load_file(tmp_path / "adapters.safetensors")
    trained_numbers = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert sum(t.numel() for t in tensors.values()) == trained_numbers
    other = copy.deepcopy(trained)
    lora.adapt(other, RANK, seed=5)
    lora.load(other, tmp_path / "adapters.safetensors")
    assert torch.equal(prediction(other), prediction(network))


@pytest.mark.parametrize("options", [{"rank": 2}, {"rank": 4, "targets": r".*\.to_q"}])
def test_adapters_of_another_kind_are_refused(trained, tmp_path, options):
    one, other = copy.deepcopy(trained), copy.deepcopy(trained)
    lora.adapt(one, lora.Lora(**options), seed=0)
    lora.save(one, tmp_path / "adapters.safetensors", {})
    lora.adapt(other, RANK, seed=0)
    with pytest.raises(InputError, match="adapters of another network: .* expected"):
        lora.load(other, tmp_path / "adapters.safetensors")


def test_targets_choose_layers(network):
    names = lora.targets(network, lora.Lora(targets=r".*\.to_(q|k|v|kv|out)"))
    assert names and {name.rsplit(".", 1)[1] for name in names} <= {"to_q", "to_k", "to_v", "to_kv", "to_out"}
    every = lora.targets(network, RANK)
    assert len(every) > len(names) and "conv_out" in every and "conv_in" in every


def test_no_match_is_one_line(network):
    with pytest.raises(
        InputError, match=r"training\.lora\.targets: 'attention' matches none .* for example [a-z]"
    ) as error:
        lora.adapt(network, lora.Lora(targets="attention"), seed=0)
    assert "\n" not in str(error.value)
    assert not any("lora" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"targets": "to_(q"}, {"ranks": 3}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lora.Lora(**options)


def test_adapters_among_settings_are_found_where_they_are():
    class Inner(Section):
        rank: int = 3
        head: lora.Lora | None = lora.Lora(rank=2)

    class Outer(Section):
        first: lora.Lora | None = None
        inner: Inner = Inner()
        second: lora.Lora = lora.Lora(rank=5)

    found = dict(lora.inside(Outer(), "objective"))
    assert {place: each.rank for place, each in found.items()} == {"objective.inner.head": 2, "objective.second": 5}
    assert [place for place, _ in lora.inside(Outer(first=lora.Lora(), inner=Inner(head=None)), "x")] == [
        "x.first",
        "x.second",
    ]
