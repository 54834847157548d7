"""open_clip_config.json, read as data: only the keys named here reach open_clip, and none of them fetches or imports anything.

open_clip passes what a configuration says on as keyword arguments, also to a tokeniser that may run Python of the folder's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas.documents import strict
from nas.documents.section import Section
from nas.errors import InputError, brief

FILE = "open_clip_config.json"
Layers = Annotated[int, Field(ge=1, le=256)]
Size = Annotated[int, Field(ge=1, le=65_536)]
Side = Annotated[int, Field(ge=1, le=4_096)]  # pixels
Tokens = Annotated[int, Field(ge=2, le=1_024)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Colour = tuple[Number, Number, Number]


class Activation(Section):
    """Of GELU."""

    approximate: Literal["none", "tanh"] | None = None


class Norm(Section):
    """Of a layer norm."""

    eps: float | None = Field(None, gt=0, lt=1)


class Tokenising(Section):
    """How captions are cleaned, and what becomes of BERT's separator."""

    clean: Literal["canonicalize", "lower", "whitespace"] | None = None
    strip_sep_token: bool | None = None


class _Tower(Section):
    """What both towers have; a key that is not given has open_clip's own default."""

    layers: Layers | tuple[Layers, Layers, Layers, Layers] | None = None
    width: Size | None = None
    mlp_ratio: float | None = Field(None, gt=0, le=64)
    ls_init_value: Number | None = None
    final_ln_after_pool: bool | None = None
    pool_type: str | None = None
    output_tokens: bool | None = None
    act_kwargs: Activation | None = None
    norm_kwargs: Norm | None = None
    block_type: str | None = None
    qk_norm: bool | None = None
    scaled_cosine_attn: bool | None = None
    scale_heads: bool | None = None
    scale_attn_inner: bool | None = None
    scale_attn: bool | None = None
    scale_fc: bool | None = None

    def arguments(self) -> dict[str, Any]:
        """What is given, for open_clip."""
        return self.model_dump(exclude_unset=True)


class Vision(_Tower):
    """`vision_cfg`."""

    head_width: Size | None = None
    patch_size: Side | None = None
    image_size: Side | tuple[Side, Side] | None = None
    patch_dropout: float | None = Field(None, ge=0, lt=1)
    attentional_pool: bool | None = None
    attn_pooler_queries: Size | None = None
    attn_pooler_heads: Size | None = None
    no_ln_pre: bool | None = None
    pos_embed_type: str | None = None
    timm_model_name: str | None = Field(None, pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$")
    """A name without a place: timm would fetch `hf-hub:...`, and read a folder."""
    timm_model_pretrained: bool | None = None
    """Not passed on: the weights are the folder's."""
    timm_pool: str | None = None
    timm_proj: str | None = None
    timm_proj_bias: bool | None = None
    timm_drop: float | None = Field(None, ge=0, lt=1)
    timm_drop_path: float | None = Field(None, ge=0, lt=1)

    def arguments(self) -> dict[str, Any]:
        return {name: value for name, value in super().arguments().items() if name != "timm_model_pretrained"}


class Text(_Tower):
    """`text_cfg`. A tower of transformers (`hf_model_name`) is not among them: it would be fetched."""

    context_length: Tokens = 77
    vocab_size: Annotated[int, Field(ge=2, le=2_000_000)] | None = None
    heads: Size | None = None
    embed_cls: bool | None = None
    pad_id: int | None = None
    eos_id: int | None = None
    no_causal_mask: bool | None = None
    proj_bias: bool | None = None
    proj_type: str | None = None
    hf_tokenizer_name: str | None = None
    """If given, the tokeniser's files are read from the folder itself, whatever the name."""
    tokenizer_mode: Literal["clips"] | None = None
    tokenizer_kwargs: Tokenising | None = None


class Model(Section):
    """`model_cfg`."""

    embed_dim: Size
    vision_cfg: Vision
    text_cfg: Text
    quick_gelu: bool = False
    init_logit_scale: Number | None = None
    init_logit_bias: Number | None = None
    nonscalar_logit_scale: bool = False


class Preprocess(BaseModel):
    """Of `preprocess_cfg` what is used: a picture's channels are shifted and scaled by these."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    mean: Colour | None = None
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = (
        None
    )


class Folder(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model_cfg: Model
    preprocess_cfg: Preprocess = Preprocess()


def read(folder: Path) -> Folder:
    """The configuration of an open_clip folder. Raises InputError naming the file and the first key that is not named here."""
    where = f"{folder}: not an open_clip folder"
    try:
        return Folder.model_validate_json((folder / FILE).read_bytes())
    except OSError as error:
        raise InputError(f"{where}: {brief(error)}") from None
    except ValidationError as error:
        raise InputError(f"{where}: {FILE}: {strict.first_wrong(Folder, error)}") from None


def model(content: Mapping[str, Any]) -> Model:
    """A `model_cfg` that is at hand. Raises InputError naming the first key that is wrong."""
    try:
        return Model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"model_cfg: {strict.first_wrong(Model, error)}") from None
