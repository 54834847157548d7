"""Drawing from a picture: against a sampler written out here, at its known ends, and as a person asks for it."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from test_experts import denoiser
from test_objectives import batch_of

from nas.deploy import shown as pictures
from nas.deploy.shown import Shown, Start
from nas.diffusion import schedule, solvers
from nas.diffusion.editing import Edit
from nas.diffusion.plan import Plan
from nas.errors import InputError
from nas.runs.pictures import save_grid

SCHEDULES = {
    name: dict(schedule.noise_schedule(schedule.Settings(**settings)).config)
    for name, settings in {
        "v": {},
        "zero_snr": {"zero_terminal_snr": True},
        "epsilon": {"prediction": "epsilon"},
    }.items()
}
ALONG = ("ddim", "dpm++", "unipc", "heun")


def picture(seed=9):
    return torch.randn(1, *batch_of(4).latents.shape[1:], generator=torch.Generator().manual_seed(seed))


def left_half():
    """1 in the left half, where it is drawn anew."""
    mask = torch.zeros(1, 1, *batch_of(4).latents.shape[2:])
    mask[..., : mask.shape[-1] // 2] = 1
    return mask


def drawn(network, plan, config, edit=None):
    batch = batch_of(4)
    return solvers.sample(network, plan, config, batch.latents, batch.text, batch.null, edit=edit)


def by_hand(network, plan, config, edit):
    """DDIM from where the strength says, v-prediction, with the known part's noisy latents put in its place before each step."""
    batch, alphas = batch_of(4), DDPMScheduler.from_config(config).alphas_cumprod.double()
    noise, known = batch.latents.double(), edit.latents.double()
    mask = torch.ones(1) if edit.mask is None else edit.mask.double()
    times = plan.times()[plan.steps - round(edit.strength * plan.steps) :]
    a, s = alphas.sqrt(), (1 - alphas).sqrt()
    x = a[times[0]] * known + s[times[0]] * noise
    for index, time in enumerate(times):
        x = mask * x + (1 - mask) * (a[time] * known + s[time] * noise)
        v = network(x.float(), torch.full((len(x),), time), batch.text).double()
        clean, e = a[time] * x - s[time] * v, s[time] * x + a[time] * v
        later = times[index + 1] if index + 1 < len(times) else None
        x = clean if later is None else a[later] * clean + s[later] * e
    return mask * x + (1 - mask) * known


@pytest.mark.parametrize("mask", [None, left_half()], ids=["whole", "half"])
def test_it_is_sdedit_and_repaint_written_out(mask):
    network, plan = denoiser(1), Plan(solver="ddim", steps=10, guidance=1.0)
    edit = Edit(picture(), strength=0.6, mask=mask)
    found = drawn(network, plan, SCHEDULES["v"], edit)
    torch.testing.assert_close(found.double(), by_hand(network, plan, SCHEDULES["v"], edit), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", [*ALONG, "renoise"])
def test_its_ends(solver, name):
    """All of the noise: a plain drawing. Nothing to be drawn: the picture, from any time. All to be drawn: as without a mask."""
    network, config = denoiser(1), SCHEDULES[name]
    plan = Plan(solver=solver, steps=4, guidance=1.0 if solver == "renoise" else 3.0)
    known = picture()
    assert torch.equal(drawn(network, plan, config, Edit(known)), drawn(network, plan, config))
    nothing, everything = torch.zeros_like(left_half()), torch.ones_like(left_half())
    for strength in (0.5, 1.0):
        stays = drawn(network, plan, config, Edit(known, strength, nothing))
        torch.testing.assert_close(stays, known.expand_as(stays), rtol=2e-3, atol=2e-3)
        free = drawn(network, plan, config, Edit(known, strength, everything))
        torch.testing.assert_close(free, drawn(network, plan, config, Edit(known, strength)))


@pytest.mark.parametrize("solver", ALONG)
def test_where_the_picture_stays_it_is_exact_and_elsewhere_it_is_another(solver):
    plan, mask, known = Plan(solver=solver, steps=5, guidance=3.0), left_half(), picture()
    found = drawn(denoiser(1), plan, SCHEDULES["v"], Edit(known, 1.0, mask))
    away = (found - known).abs() * (1 - mask)
    assert away.max() < 2e-3 and ((found - known).abs() * mask).max() > 0.1


def test_less_strength_asks_the_network_less_and_stays_nearer():
    class Picture(torch.nn.Module):
        """Knows one other picture: v = (a x - x0) / s."""

        def __init__(self, other):
            super().__init__()
            self.other, self.calls = other, 0

        def forward(self, latents, time, text):
            self.calls += 1
            alpha = DDPMScheduler.from_config(SCHEDULES["v"]).alphas_cumprod[time].view(-1, 1, 1, 1)
            return (alpha.sqrt() * latents - self.other) / (1 - alpha).sqrt()

    for solver, per_step in (("ddim", lambda steps: steps), ("heun", lambda steps: 2 * steps - 1)):
        plan = Plan(solver=solver, steps=10, guidance=1.0)
        for strength in (0.1, 0.35, 1.0):
            network = Picture(picture(1))
            found = drawn(network, plan, SCHEDULES["v"], Edit(picture(2), strength))
            assert network.calls == per_step(max(1, round(10 * strength)))
            torch.testing.assert_close(found, network.other.expand_as(found), rtol=1e-3, atol=1e-3)
    plan = Plan(solver="ddim", steps=20, guidance=1.0)
    apart = [
        float((drawn(denoiser(1), plan, SCHEDULES["v"], Edit(picture(2), s)) - picture(2)).square().mean())
        for s in (0.1, 0.5, 0.9)
    ]
    assert apart == sorted(apart) and apart[0] < 0.1 * apart[-1]


def test_a_cache_and_experts_go_on_where_the_edit_begins():
    """A schedule's rows, and experts, are those of the evaluations that are left."""
    from nas.networks.experts import Experts

    parts, edit = [denoiser(1), denoiser(2)], Edit(picture(), 0.5)
    for solver in ("ddim", "heun"):
        plan = Plan(solver=solver, steps=4, guidance=3.0)
        told = plan.changed(experts=[0] * (plan.evaluations - plan.evaluations_of(2)) + [1] * plan.evaluations_of(2))
        found = drawn(Experts(parts, (500,)), told, SCHEDULES["v"], edit)
        assert torch.equal(found, drawn(parts[1], plan, SCHEDULES["v"], edit))


# --- as a person asks for it -----------------------------------------------------------------------------------------


class Quarters:
    """An autoencoder whose latents are means of 4 x 4 pixels."""

    factor, channels = 4, 3

    def encode(self, images):
        return torch.nn.functional.avg_pool2d(images, 4)


def files(tmp_path, mask=None):
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_grid(pixels, tmp_path / "picture.png", columns=1)
    if mask is not None:
        save_grid(mask.expand(1, 3, 32, 32) * 2 - 1, tmp_path / "mask.png", columns=1)
    return tmp_path / "picture.png", tmp_path / "mask.png"


def test_a_mask_becomes_every_position_it_touches_and_the_rest_is_pasted(tmp_path):
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 5:9, 14] = 1
    edit, where = files(tmp_path, mask)
    found = pictures.shown(Quarters(), 32, Start(edit, where))
    assert found.edit.strength == 1.0 and torch.equal(found.mask, mask)
    touched = torch.zeros(1, 1, 8, 8)
    touched[..., 1:3, 3] = 1
    assert torch.equal(found.edit.mask, touched)
    pasted = found.pasted(torch.full((2, 3, 32, 32), 0.25))
    assert (pasted[..., 5:9, 14] == 0.25).all() and int((pasted == 0.25).all(1).sum()) == 2 * 4
    assert torch.equal(pasted[1][:, 20], found.picture[0][:, 20])
    assert math.isclose(pictures.shown(Quarters(), 32, Start(edit)).edit.strength, 0.6)
    assert Shown(found.picture, None, found.edit).pasted(pasted) is pasted


def test_what_is_no_edit_is_one_line(tmp_path):
    edit, where = files(tmp_path, torch.ones(1, 1, 32, 32))
    (tmp_path / "no.png").write_bytes(b"zebra")
    for given, words in (
        (Start(edit, where), r"--mask .*: all of it is white; expected white where"),
        (Start(tmp_path / "none.png"), r"--edit .*none.png: No such file"),
        (Start(tmp_path / "no.png"), r"--edit .*no.png: not a readable picture: expected PNG"),
        (Start(edit, tmp_path), r"--mask .*: not a regular file"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            pictures.shown(Quarters(), 32, given)
        assert "\n" not in str(caught.value)
    assert Start.of(None, None, None) is None
    with pytest.raises(InputError, match=r"^--mask: .*, of no picture; expected --edit too"):
        Start.of(None, where, None)
    with pytest.raises(InputError, match=r"^--strength: 0.5, of no picture"):
        Start.of(None, None, 0.5)
    with pytest.raises(InputError, match="solver autoregressive starts from no picture"):
        drawn(denoiser(1), Plan(solver="autoregressive"), SCHEDULES["v"], Edit(picture()))
