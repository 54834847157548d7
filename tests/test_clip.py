"""open_clip: folders are data, and weights are loaded with the activation they were trained with."""

import json

import open_clip
import pytest
import tiny_clip
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file
from torch import nn

from nas.errors import InputError
from nas.metrics import Reference, clip_score
from nas.networks import conditioning
from nas.networks.conditioning import clip, clip_config

CAPTIONS = ["a red heart", "pizza"]


@pytest.fixture
def folder(tmp_path):
    return tiny_clip.save(tmp_path / "tiny")


def rewrite(folder, change):
    """The folder's configuration with something else in it."""
    path = folder / clip_config.FILE
    content = json.loads(path.read_text())
    change(content["model_cfg"])
    path.write_text(json.dumps(content))


def loaders(folder):
    """Everything that takes an open_clip folder."""
    yield lambda: clip.load(folder)
    yield lambda: conditioning.load(conditioning.Conditioning(model=str(folder)))
    yield lambda: clip_score.build(clip_score.Settings(judge=str(folder)), Reference(list))


# --- a folder's configuration is data --------------------------------------------------------------------------------

NOT_PASSED_ON = {
    "model_cfg.text_cfg.tokenizer_kwargs.trust_remote_code": True,
    "model_cfg.text_cfg.tokenizer_kwargs.bpe_path": "/etc/passwd",
    "model_cfg.text_cfg.tokenizer_kwargs.reduction_mask": "syntax",  # fetches nltk's data
    "model_cfg.text_cfg.tokenizer_kwargs.tokenizer_class": "x",
    "model_cfg.text_cfg.hf_model_name": "someone/encoder",
    "model_cfg.text_cfg.hf_model_pretrained": True,
    "model_cfg.text_cfg.act_kwargs.inplace": True,
    "model_cfg.vision_cfg.norm_kwargs.device": "meta",
    "model_cfg.vision_cfg.timm_model_name": "hf-hub:someone/picture-tower",
    "model_cfg.vision_cfg.layers": 10**9,
    "model_cfg.text_cfg.width": "many",
    "model_cfg.cast_dtype": "float16",
}


@pytest.mark.parametrize("key", NOT_PASSED_ON)
def test_only_named_keys_of_a_folder_reach_open_clip(folder, key):
    def plant(content):
        *sections, last = key.split(".")[1:]
        for section in sections:
            content = content.setdefault(section, {})
        content[last] = NOT_PASSED_ON[key]

    rewrite(folder, plant)
    for load in loaders(folder):
        with pytest.raises(InputError) as caught:
            load()
        assert f"tiny: not an open_clip folder: open_clip_config.json: {key}: " in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"model_cfg": 1}', ""])
def test_what_is_no_configuration_is_one_line(folder, content):
    (folder / clip_config.FILE).write_text(content)
    with pytest.raises(InputError, match=r"open_clip_config\.json: ") as caught:
        clip.load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_vocabulary_that_unpacks_to_too_much_is_refused(folder, monkeypatch):
    monkeypatch.setattr(clip, "LARGEST_BPE", 100)
    with pytest.raises(InputError, match=r"bpe\.txt\.gz: more than .* expected a vocabulary"):
        clip.load(folder)


def with_hub_tokenizer(tmp_path, **tokenizer_config):
    """A folder whose captions are read by a Hugging Face tokenizer of six words, from files that lie in it."""
    tokenizers = pytest.importorskip("tokenizers", reason="transformers is not installed")
    folder = tiny_clip.save(tmp_path / "tiny")
    (folder / clip.BPE).unlink()
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "red": 3, "heart": 4, "pizza": 5}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told | tokenizer_config))
    rewrite(folder, lambda model: model["text_cfg"].update(hf_tokenizer_name="someone/tokenizer"))
    return folder


def test_a_folders_own_tokenizer_is_read_from_its_files(tmp_path):
    _, tokenise = clip.load(with_hub_tokenizer(tmp_path))
    found = tokenise(["a red heart", "Pizza pizza"])
    assert found[:, :4].tolist() == [[2, 3, 4, 0], [1, 5, 0, 0]] and found.shape == (2, tiny_clip.CONTEXT)


@pytest.mark.parametrize("asked", ["by the tokenizer", "by the model", "in open_clip's words"])
def test_a_folders_python_does_not_run(tmp_path, asked):
    """A tokenizer whose class is in a file of the folder, which is what `trust_remote_code` would import."""
    remote = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None], "AutoConfig": "tokenization_own.Own"}}
    folder = with_hub_tokenizer(tmp_path, **({} if asked == "by the model" else {"tokenizer_class": "Own", **remote}))
    (folder / "tokenization_own.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\nclass Own: pass\n")
    if asked == "by the model":
        (folder / "tokenizer_config.json").unlink()
        (folder / "config.json").write_text(json.dumps({"model_type": "own", **remote}))
    if asked == "in open_clip's words":
        rewrite(folder, lambda model: model["text_cfg"].update(tokenizer_kwargs={"trust_remote_code": True}))
    for load in loaders(folder):
        with pytest.raises(InputError, match="tiny: not an open_clip folder") as caught:
            load()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "proof").exists()


# --- QuickGELU -------------------------------------------------------------------------------------------------------


def small(name, config=open_clip.get_model_config):
    """An open_clip model's configuration, as small as its kind allows."""
    content = config(name)
    if content is None:
        return None
    content["embed_dim"] = 8
    vision, text = content["vision_cfg"], content["text_cfg"]
    vision |= {"layers": [1, 1, 1, 1] if isinstance(vision.get("layers"), list) else 1, "width": 16, "head_width": 16}
    vision |= {"image_size": 32, "patch_size": 16}
    if "multimodal_cfg" in content:
        content["multimodal_cfg"] |= {"width": 16, "heads": 1, "layers": 1}
    text |= {"width": 16, "heads": 1, "layers": 1, "vocab_size": 64}
    return content


def native(name):
    """Built by open_clip alone, without timm or transformers."""
    content = open_clip.get_model_config(name)
    return not {"timm_model_name"} & set(content["vision_cfg"]) and not {"hf_model_name"} & set(content["text_cfg"])


TAGS = [(model, tag) for model, tag in open_clip.list_pretrained() if native(model)]


@pytest.fixture
def offline(monkeypatch):
    """open_clip with small networks, whose weights are had at once."""
    factory = open_clip.factory
    monkeypatch.setattr(factory, "get_model_config", small)
    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: "downloaded")
    monkeypatch.setattr(factory, "load_checkpoint", lambda *_, **__: {})
    monkeypatch.setattr(clip, "_without_code", lambda model: {})
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_, **__: None)


def activations(network):
    """The kinds of GELU in it, wherever they are."""
    return {type(module) for module in network.modules() if isinstance(module, nn.GELU | QuickGELU)}


@pytest.mark.filterwarnings("error:QuickGELU mismatch")
def test_every_tag_has_the_activation_it_was_trained_with(offline):
    """By open_clip's own table; a model of that name may ask for QuickGELU as well."""
    trained_with, built = {}, {}
    for model, tag in TAGS:
        quick = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False) or model.endswith("-quickgelu")
        trained_with[model, tag] = QuickGELU if quick else nn.GELU
        assert clip.quick_gelu(model, tag) == quick, (model, tag)
        if (model, quick) not in built:  # further tags of the same kind build the same network
            built[model, quick] = activations(clip.load(model, tag)[0])
        assert built[model, quick] == {trained_with[model, tag]}, (model, tag)
    assert sum(kind is QuickGELU for kind in trained_with.values()) > 50
    assert trained_with["ViT-L-14", "openai"] is QuickGELU and trained_with["ViT-L-14", "laion2b_s32b_b82k"] is nn.GELU


def test_the_documented_encoder_and_judge_have_it(offline, monkeypatch):
    seen = []
    monkeypatch.setattr(conditioning.OpenClip, "_hold", lambda self, model, *_: seen.append(model))
    conditioning.load(conditioning.Conditioning(model="ViT-L-14", pretrained="openai", length=77))
    judge = clip_score.Judge(clip_score.Settings(judge="ViT-L-14", pretrained="openai"))
    assert [activations(network) for network in (*seen, judge.model)] == [{QuickGELU}, {QuickGELU}]
    assert judge.conditions["activation"] == "quick_gelu"
    other = clip_score.Judge(clip_score.Settings(judge="ViT-L-14", pretrained="laion2b_s32b_b82k"))
    assert "activation" not in other.conditions  # of scores that were measured before it was told


def test_a_file_has_the_activation_of_the_models_name(offline, tmp_path):
    (tmp_path / "weights.safetensors").touch()
    for name, kind in (("ViT-L-14", nn.GELU), ("ViT-L-14-quickgelu", QuickGELU)):
        network, _ = clip.load(name, str(tmp_path / "weights.safetensors"))
        assert activations(network) == {kind}


def test_what_cannot_be_fetched_says_how_its_file_is_to_be_loaded(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", unreachable)
    with pytest.raises(InputError, match="set pretrained to its path .* with the model ViT-L-14-quickgelu, since"):
        clip.load("ViT-L-14", "openai")
    with pytest.raises(InputError, match="set pretrained to its path") as caught:
        clip.load("ViT-L-14", "laion2b_s32b_b82k")
    assert "quickgelu" not in str(caught.value)


def test_embeddings_of_another_activation_are_other_embeddings(folder):
    gelu = conditioning.identity(conditioning.Conditioning(model=str(folder)))
    rewrite(folder, lambda model: model.update(quick_gelu=True))
    assert conditioning.identity(conditioning.Conditioning(model=str(folder))) == gelu | {"activation": "quick_gelu"}
    named = [conditioning.Conditioning(model="ViT-L-14", pretrained=tag) for tag in ("openai", "laion2b_s32b_b82k")]
    assert ["activation" in conditioning.identity(one) for one in named] == [True, False]
    shipped = conditioning.Conditioning()
    assert conditioning.identity(shipped) == shipped.model_dump(mode="json")


def test_a_folder_has_the_activation_its_configuration_says(tmp_path):
    """As open_clip's own loader has it; with the other one the features differ."""
    folder = tiny_clip.save(tmp_path / "tiny", own_vocabulary=False)
    rewrite(folder, lambda model: model.update(quick_gelu=True))
    own = open_clip.create_model(f"local-dir:{folder}").eval()
    network, tokenise = clip.load(folder)
    with torch.no_grad():
        found, expected = network.encode_text(tokenise(CAPTIONS)), own.encode_text(open_clip.tokenize(CAPTIONS, 12))
    assert activations(network) == {QuickGELU} and torch.allclose(found, expected, atol=1e-6)
    plain = clip.build({**json.loads((folder / clip_config.FILE).read_text())["model_cfg"], "quick_gelu": False})
    plain.load_state_dict(load_file(folder / clip.WEIGHTS))
    with torch.no_grad():
        assert (plain.eval().encode_text(tokenise(CAPTIONS)) - expected).abs().max() > 1e-4
