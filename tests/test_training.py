import math

import pytest
import torch
from safetensors import safe_open
from torch import nn

from nas.diffusion import schedule
from nas.errors import InputError
from nas.failures import Diverged
from nas.networks.averages import Average
from nas.networks.conditioning import Text
from nas.objectives import denoising
from nas.seeds import stream_seed
from nas.settings.training import Training
from nas.training import loop
from nas.training.batches import Batches
from nas.training.encoded import EncodedSet
from nas.training.loop import DenoiserTraining, train

SHAPE = (2, 4, 4)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Also where there is a GPU: what is compared here is exact."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def encoded(count=40, captions=7, seed=0):
    """A split by hand: image i has caption i % captions; the last caption is the empty one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(captions + 1, 3, 5, generator=generator).half()
    pooled = torch.randn(captions + 1, 5, generator=generator).half()
    names = (*(f"caption {i}" for i in range(captions)), "")
    latents = torch.randn(count, *SHAPE, generator=generator)
    return EncodedSet(latents, torch.arange(count) % captions, names, tokens, pooled)


class Denoiser(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(SHAPE[0], 8, 3, padding=1)
            self.text = nn.Linear(5, 8)
            self.last = nn.Conv2d(8, SHAPE[0], 3, padding=1)

    def forward(self, latents, time, text):
        given = self.text(text.tokens.mean(1) + text.pooled) * (1 + time[:, None] / 1000)
        return self.last(torch.tanh(self.first(latents) + given[:, :, None, None]))


QUICK = Training(images_seen=96, batch=8, warmup_images=32, learning_rate=0.01)


def module_of(settings=QUICK, objective=None):
    return DenoiserTraining(objective or denoising.Objective(Denoiser(), None, schedule.Settings()), settings)


def weights(module):
    """Everything a trial is continued from."""
    tensors = {f"network.{name}": value for name, value in module.objective.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in module.ema.weights.items()}
    tensors |= {f"averages.{name}": value for name, value in module.averages.state_dict().items()}
    for index, adam in enumerate(module.adam.values()):
        for row, state in adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{row}.{name}": torch.as_tensor(value) for name, value in state.items()}
    return {name: value.clone() for name, value in tensors.items()}


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# --- what an update sees ---------------------------------------------------------------------------------------------


def rows_of(data, batches):
    """Which images the batches hold, found by their latents."""
    return [
        int((data.latents == latents).all((1, 2, 3)).nonzero().item()) for batch in batches for latents in batch.latents
    ]


@pytest.mark.parametrize(("count", "batch"), [(40, 8), (40, 7), (5, 8), (3, 8), (1, 2)])
def test_every_epoch_has_every_row_once(count, batch):
    data = encoded(count)
    rows = rows_of(data, Batches(data, Training(batch=batch), 0, 0, 60))
    assert len(rows) == 60 * batch
    epochs = [rows[i : i + count] for i in range(0, len(rows) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 4:
        assert epochs[0] != epochs[1]  # a fresh permutation


def test_an_update_is_a_function_of_seed_and_number():
    data, settings = encoded(), Training(batch=8)
    whole = list(Batches(data, settings, 3, 0, 12))
    later = list(Batches(data, settings, 3, 7, 12))
    for one, other in zip(whole[7:], later, strict=True):
        assert torch.equal(one.latents, other.latents) and torch.equal(one.text.tokens, other.text.tokens)
        assert all(map(torch.equal, one.draw(1000), other.draw(1000)))
    others = list(Batches(data, settings, 4, 0, 12))
    assert rows_of(data, others) != rows_of(data, whole)
    assert not torch.equal(whole[0].draw(1000)[1], whole[1].draw(1000)[1])


def test_captions_go_with_their_images_and_the_asked_share_is_dropped():
    data = encoded(200, captions=50)
    settings = Training(batch=20, caption_dropout=0.3)
    dropped = 0
    for batch in Batches(data, settings, 0, 0, 200):
        for row, tokens, pooled in zip(rows_of(data, [batch]), batch.text.tokens, batch.text.pooled, strict=True):
            empty = torch.equal(tokens, data.null.tokens[0])
            caption = len(data.captions) - 1 if empty else int(data.caption_of[row])
            assert torch.equal(tokens, data.tokens[caption].float())
            assert torch.equal(pooled, data.pooled[caption].float())
            dropped += empty
    assert dropped / 4000 == pytest.approx(0.3, abs=0.025)  # 3.5 standard deviations
    kept = Batches(data, Training(batch=20, caption_dropout=0), 0, 0, 20)
    assert not any(torch.equal(t, data.null.tokens[0]) for batch in kept for t in batch.text.tokens)


def test_stream_seeds_do_not_collide():
    seeds = {stream_seed(seed, position) for seed in range(50) for position in range(-50, 200)}
    assert len(seeds) == 50 * 250 and all(0 <= seed < 2**63 for seed in seeds)


# --- the same again --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits():
    runs = []
    for noise in range(2):
        torch.manual_seed(noise)  # the global generator has no say
        module = module_of()
        train(module, encoded(), seed=5, images_seen=96)
        runs.append(weights(module))
    assert_identical(*runs)
    module = module_of()
    train(module, encoded(), seed=6, images_seen=96)
    assert not torch.equal(weights(module)["network.generator.first.weight"], runs[0]["network.generator.first.weight"])


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole = module_of()
    train(whole, encoded(), 5, 96)
    half = module_of()
    train(half, encoded(), 5, 40)
    half.save(tmp_path / "half.safetensors", {"note": "rung 0"})
    resumed = module_of(objective=denoising.Objective(Denoiser(seed=9), None, schedule.Settings()))
    resumed.restore(tmp_path / "half.safetensors")
    assert resumed.images_seen == 40
    assert_identical(weights(resumed), weights(half))
    pace = train(resumed, encoded(), 5, 96)
    assert pace.images == 56 and pace.images_per_s > 0
    assert_identical(weights(resumed), weights(whole))


def test_training_in_parts_is_training_at_once():
    whole, parts = module_of(), module_of()
    train(whole, encoded(), 5, 96)
    for images in (16, 16, 64, 96):
        train(parts, encoded(), 5, images)
    assert_identical(weights(parts), weights(whole))
    assert train(parts, encoded(), 5, 96) == loop.Pace(0, 0.0)  # nothing left to do


def test_a_saved_file_tells_its_metadata_and_leaves_no_other_file(tmp_path):
    module = module_of()
    train(module, encoded(), 5, 16)
    module.save(tmp_path / "weights.safetensors", {"key": "abc"})
    module.save(tmp_path / "weights.safetensors", {"key": "abc"})  # replaced
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert file.metadata() == {"key": "abc", "images_seen": "16"}
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


# --- one update ------------------------------------------------------------------------------------------------------


def test_training_is_adamw_with_warm_up_clipping_and_average_by_hand():
    """The same updates in a plain loop; after six of them the settings ask for half the learning rate."""
    settings = Training(images_seen=80, batch=8, warmup_images=32, learning_rate=0.02, gradient_clip=0.1, ema_decay=0.4)
    module, data = module_of(settings), encoded()
    train(module, data, 5, 48)
    module.settings = settings.model_copy(update={"learning_rate": 0.01})
    train(module, data, 5, 80)

    objective = denoising.Objective(Denoiser(), None, schedule.Settings())
    network = objective.generator
    adam = torch.optim.AdamW(network.parameters(), betas=settings.betas, weight_decay=settings.weight_decay)
    average = [parameter.detach().clone() for parameter in network.parameters()]
    for update, batch in enumerate(Batches(data, settings, 5, 0, 10)):
        adam.param_groups[0]["lr"] = (0.02 if update < 6 else 0.01) * min(1, (update + 1) / 4)
        adam.zero_grad()
        objective.generator_loss(batch).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        assert norm > 0.1  # the clip matters
        adam.step()
        decay = min(0.4, (2 + update) / (11 + update))
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, network.parameters(), strict=True)]
    for mine, theirs in zip(module.objective.generator.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(module.ema.weights.values(), average, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_swapping_the_average_twice_changes_nothing():
    network = Denoiser()
    ema = Average(network, 0.9, warmup=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    ema.update(network, 5)
    trained, averaged = [p.clone() for p in network.parameters()], [a.clone() for a in ema.weights.values()]
    ema.swap(network)
    assert all(map(torch.equal, network.parameters(), averaged)) and all(
        map(torch.equal, ema.weights.values(), trained)
    )
    ema.swap(network)
    assert all(map(torch.equal, network.parameters(), trained)) and all(
        map(torch.equal, ema.weights.values(), averaged)
    )


def test_the_average_follows_the_network_to_another_device():
    """As the Trainer moves it: parameters stay the same objects. The meta device stands for a GPU."""
    network = Denoiser()
    ema = Average(network, 0.9, warmup=True)
    nn.ModuleList([network, ema]).to("meta")
    ema.update(network, 1)
    assert {value.device.type for value in ema.weights.values()} == {"meta"}


@pytest.mark.parametrize(("images", "batch", "updates"), [(64, 64, 1), (65, 64, 2), (1, 64, 1), (0, 64, 0)])
def test_lengths_are_in_images(images, batch, updates):
    assert Training(batch=batch).updates(images) == updates


def test_bf16_trains_and_keeps_its_weights_in_fp32():
    module = module_of(QUICK.model_copy(update={"precision": "bf16"}))
    train(module, encoded(), 5, 40)
    assert math.isfinite(module.loss)
    assert {parameter.dtype for parameter in module.objective.parameters()} == {torch.float32}


# --- what can go wrong -----------------------------------------------------------------------------------------------


class Broken(Denoiser):
    """Predicts NaN from its n-th call on."""

    def __init__(self, good_calls):
        super().__init__()
        self.left = good_calls

    def forward(self, latents, time, text):
        self.left -= 1
        return super().forward(latents, time, text) * (1.0 if self.left >= 0 else math.nan)


@pytest.mark.parametrize("good_calls", [0, 3, 25])
def test_a_loss_that_is_no_number_ends_the_training(good_calls):
    module = module_of(objective=denoising.Objective(Broken(good_calls), None, schedule.Settings()))
    with pytest.raises(Diverged, match=r"the loss is nan after [\d,]+ images"):
        train(module, encoded(), 5, 30 * 8)
    assert module.step <= math.ceil((good_calls + 1) / loop.FINITE_CHECK_EVERY) * loop.FINITE_CHECK_EVERY


def test_an_empty_split_is_named():
    data = encoded()
    empty = EncodedSet(data.latents[:0], data.caption_of[:0], data.captions, data.tokens, data.pooled)
    with pytest.raises(InputError, match="the training split is empty"):
        train(module_of(), empty, 5, 16)


@pytest.mark.parametrize(
    "options",
    [{"images_seen": 0}, {"batch": 0}, {"learning_rate": 0}, {"caption_dropout": 1}, {"ema_decay": 1}, {"steps": 3}],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Training(**options)


def test_text_of_dropped_rows_is_the_empty_captions():
    data = encoded(4)
    text = data.text(torch.tensor([2, 3]), torch.tensor([True, False]))
    assert isinstance(text, Text)
    assert torch.equal(text.tokens, data.tokens[[7, 3]].float()) and torch.equal(
        text.pooled, data.pooled[[7, 3]].float()
    )
