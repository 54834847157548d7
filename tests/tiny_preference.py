"""Random scorers of a few thousand parameters that see 224 px, in folders as their metrics read them."""

import json

import tiny_clip
import torch
from safetensors.torch import save_file

from nas.networks.conditioning import clip

WORDS = {"[PAD]": 0, "[UNK]": 1, "[END]": 2, "a": 3, "red": 4, "heart": 5, "pizza": 6, "caption": 7, "violin": 8}


def pickscore(path):
    """A CLIP of transformers with its processor, six words long."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    path.mkdir(parents=True)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(
        text_config={**tower, **text, "max_position_embeddings": 6},
        vision_config={**tower, "image_size": 224, "patch_size": 56},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(path)
    CLIPImageProcessor().save_pretrained(path)
    made = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    made.save(str(path / "tokenizer.json"))
    said = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]", "model_max_length": 6}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **said}))
    return path


def hps(path):
    """An open_clip of the same kind as `tiny_clip`'s."""
    tiny_clip.save(path)
    content = json.loads((path / "open_clip_config.json").read_text())
    content["model_cfg"]["vision_cfg"] |= {"image_size": 224, "patch_size": 56}
    (path / "open_clip_config.json").write_text(json.dumps(content))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(clip.build(content["model_cfg"]).state_dict(), path / clip.WEIGHTS)
    return path


FOLDERS = {"pickscore": pickscore, "hps": hps}
