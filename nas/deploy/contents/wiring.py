"""The tensors of a picture's three networks as data: names, shapes and types, and which output feeds which input.

It stands in `draw.json` and in the model card of an export, and in the metadata of its graphs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nas.networks.conditioning import TextEncoder

Table = dict[str, dict[str, list[dict[str, Any]]]]
"""Of each network `inputs` and `outputs`, in order: `name`, `shape` (the batch first), `dtype`, and `from` or `to`."""
BATCH = "batch"
PREDICTIONS = {"v_prediction": "v", "epsilon": "epsilon"}  # diffusers' words, and a study file's
CONSTANTS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr")
TOKENISED = {
    "input_ids": "the caption's tokens, by tokenizer.json",
    "attention_mask": "1 for a token of the caption, 0 for padding",
}


def table(encoder: TextEncoder, latents: tuple[int, int, int], image_size: int) -> Table:
    """The tensors for latents (C, H, W) and pictures of `image_size` pixels a side."""
    states, pooled = (encoder.length, encoder.width), (encoder.pooled_width,)
    return {
        "text_encoder": {
            "inputs": [
                _tensor(name, value.shape[1:], "int64", **{"from": TOKENISED[name]})
                for name, value in encoder.tokenise([""]).items()
            ],
            "outputs": [
                _tensor("states", states, to="denoiser: tokens"),
                _tensor("pooled_text", pooled, to="denoiser: pooled"),
            ],
        },
        "denoiser": {
            "inputs": [
                _tensor("latents", latents, **{"from": "Gaussian noise, then what the step before made"}),
                _tensor("time", (), "int64", **{"from": "the step's time, of the schedule's"}),
                _tensor("tokens", states, **{"from": "text_encoder: states"}),
                _tensor("pooled", pooled, **{"from": "text_encoder: pooled_text"}),
            ],
            "outputs": [_tensor("prediction", latents, to="the step, with the schedule's prediction")],
        },
        "decoder": {
            "inputs": [_tensor("latents", latents, **{"from": "what the last step made"})],
            "outputs": [_tensor("images", (3, image_size, image_size), to="the picture: red, green, blue in [-1, 1]")],
        },
    }


def notes(tensors: Table, schedule: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What each network's graph says of itself, by its name; `schedule` is the noise schedule's configuration."""
    made = {
        name: {"network": name} | {side: json.dumps(given) for side, given in sides.items()}
        for name, sides in tensors.items()
    }
    constants = {name: value for name, value in schedule.items() if name in CONSTANTS}
    made["denoiser"] |= {
        "prediction": PREDICTIONS[schedule["prediction_type"]],
        "schedule": json.dumps(constants),
    }
    return made


def _tensor(name: str, shape: Sequence[int], dtype: str = "float32", **linked: str) -> dict[str, Any]:
    return {"name": name, "shape": [BATCH, *shape], "dtype": dtype, **linked}
