"""Model types of ``transformers``, chosen by a rule and made by one generic procedure, with random weights.

**The rule.** The model types of the library's own mapping (``MODEL_MAPPING_NAMES``, one model for each type), in
alphabetical order, every fourth one, beginning with the first. A type is taken if ``build`` makes a network of it,
without code for the type; what edgeopt does with it plays no part.

``build`` takes the type's default configuration, sets those of ``SIZES`` that it has (in nested configurations too),
makes the model, and gives it the one input that the library calls its main one; an encoder-decoder gets tokens for its
decoder as well. The first output, as its mean over the positions if it is a map, goes through a linear layer. A type is
skipped if this fails or takes more than a minute, if it needs a package that is not here, if more than
``MAX_PARAMETERS`` are left, or if two runs differ.

``model_types.json`` holds what the rule gave with one version of the library: the types taken, and why each other one
was skipped. ``benchmarks/choose_model_types.py`` writes it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, Built

STRIDE = 4
MAX_PARAMETERS = 8_000_000
CHOICE = Path(__file__).with_suffix(".json")
SOURCE = "Hugging Face transformers, by model type"

_WIDTH, _HEADS, _VOCABULARY, _IMAGE_SIZE = 96, 4, 300, 64
_NAMES_BY_SIZE: dict[int, tuple[str, ...]] = {
    _WIDTH: (
        "hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "hidden_dim", "decoder_hidden_size",
        "attention_hidden_size", "emb_dim", "projection_dim", "word_embed_proj_dim", "encoder_hidden_dim",
        "encoder_hidden_size", "lru_width", "d_embed",
    ),
    3 * _WIDTH: (
        "intermediate_size", "d_ff", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim",
        "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size",
    ),
    _HEADS: (
        "num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads",
        "num_experts", "num_local_experts", "n_routed_experts",
    ),
    _WIDTH // _HEADS: ("head_dim", "d_kv", "v_head_dim", "attention_head_size"),
    2: (
        "num_key_value_heads", "n_kv_heads", "multi_query_group_num", "num_experts_per_tok", "num_hidden_layers",
        "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
        "num_encoder_layers",
    ),
    _VOCABULARY: ("vocab_size", "decoder_vocab_size"),
    _IMAGE_SIZE: (
        "image_size", "max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions",
    ),
    8: ("patch_size",),
}  # fmt: skip
SIZES = {name: size for size, names in _NAMES_BY_SIZE.items() for name in names}
"""Settings that configurations share, by their usual names."""


def _ids(_: Any) -> Tensor:
    return torch.randint(_VOCABULARY, (1, 24))


def _image(config: Any) -> Tensor:
    size = getattr(config, "image_size", None)
    size = size if isinstance(size, int) else _IMAGE_SIZE
    return torch.randn(1, getattr(config, "num_channels", 3), size, size)


def _wave(_: Any) -> Tensor:
    return torch.randn(1, 3200)


def _spectrogram(config: Any) -> Tensor:
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "input_feat_per_channel", None) or 80
    return torch.randn(1, bins, 128)


_INPUTS: dict[str, Callable[[Any], Tensor]] = {
    "input_ids": _ids, "pixel_values": _image, "input_values": _wave, "input_features": _spectrogram,
}  # fmt: skip


class FirstOutput(nn.Module):
    """A model's first output through a linear layer over its channels."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.names, self.options = model, names, options
        self.head: nn.Module = nn.Identity()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return five numbers for each sample, or for each of its tokens."""
        x = self.model(**dict(zip(self.names, inputs, strict=True)), **self.options)[0]
        return self.head(x.flatten(2).mean(2) if x.ndim == 4 else x)


def _shrink(config: Any) -> dict[str, Any]:
    """Return the arguments that make a configuration small, in its nested configurations too."""
    sizes = {name: size for name, size in SIZES.items() if isinstance(getattr(config, name, None), int)}
    nested = {name: getattr(config, name, None) for name in type(config).sub_configs}
    return sizes | {name: _shrink(part) for name, part in nested.items() if part is not None}


def build(model_type: str) -> Built:
    """Make a small network of a model type.

    Raises:
        ValueError: the procedure does not fit the type; the message says why. Other errors come from the library.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = MODEL_MAPPING_NAMES[model_type]
    config_class = CONFIG_MAPPING[model_type]
    config = config_class(**_shrink(config_class()))
    model = getattr(transformers, name if isinstance(name, str) else name[0])(config).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MAX_PARAMETERS:
        raise ValueError(f"{parameters} parameters are left")
    if model.main_input_name not in _INPUTS:
        raise ValueError(f"its main input is {model.main_input_name}")
    names = (model.main_input_name, *(("decoder_input_ids",) if getattr(config, "is_encoder_decoder", False) else ()))
    inputs = tuple(_INPUTS.get(name, _ids)(config) for name in names)
    options = {"return_dict": False} | ({"use_cache": False} if hasattr(config, "use_cache") else {})
    network = FirstOutput(model, names, options)
    with torch.no_grad():
        one, two = network(*inputs), network(*inputs)
    if not isinstance(one, Tensor) or one.ndim not in (2, 3):
        raise ValueError(f"its first output is a {type(one).__name__} of shape {getattr(one, 'shape', None)}")
    if not torch.equal(one, two):
        raise ValueError("two runs differ")
    network.head = nn.Linear(one.shape[-1], 5)
    return network, inputs


MODEL_TYPES: dict[str, Architecture] = {
    f"hf/{model_type}": Architecture(functools.partial(build, model_type), SOURCE, ("head",))
    for model_type in json.loads(CHOICE.read_text())["taken"]
}
"""By name, ``hf/`` and the model type."""
