"""Architectures from ``transformers``, in small configurations with random weights.

Needs the extra ``bench``; ``transformers`` is imported only when a network is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, Built

SOURCE = "Hugging Face transformers"
TOKENS = (1, 24)
IMAGE = (1, 3, 64, 64)


class Logits(nn.Module):
    """Returns a model's first output tensor, through a linear layer if the model has no head."""

    def __init__(self, model: nn.Module, width: int = 0, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.head = nn.Linear(width, 5) if width else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map the model's input to logits."""
        logits: Tensor = self.head(self.model(inputs, **self.options, return_dict=False)[0])
        return logits


def _of(
    config: str, model: str, inputs: Tensor, width: int = 0, options: dict[str, Any] | None = None, **sizes: Any
) -> Built:
    import transformers

    settings = getattr(transformers, config)(**sizes)
    return Logits(getattr(transformers, model)(settings), width, **(options or {})), (inputs,)


def _ids() -> Tensor:
    return torch.randint(300, TOKENS)


ENCODER: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 288,
}  # fmt: skip


def bert() -> Built:
    """The encoder of a masked language model, with a classifier."""
    return _of(
        "BertConfig", "BertForSequenceClassification", _ids(), max_position_embeddings=64, num_labels=5, **ENCODER
    )


def distilbert() -> Built:
    """The same without pooler and token types."""
    return _of(
        "DistilBertConfig", "DistilBertForSequenceClassification", _ids(),
        vocab_size=300, dim=96, n_layers=3, n_heads=4, hidden_dim=288, max_position_embeddings=64, num_labels=5,
    )  # fmt: skip


def vit() -> Built:
    """Image patches."""
    sizes = {key: value for key, value in ENCODER.items() if key != "vocab_size"}
    return _of(
        "ViTConfig", "ViTForImageClassification", torch.randn(IMAGE), image_size=64, patch_size=8, num_labels=5, **sizes
    )


def swin() -> Built:
    """Shifted windows."""
    return _of(
        "SwinConfig", "SwinForImageClassification", torch.randn(IMAGE),
        image_size=64, patch_size=4, embed_dim=48, depths=[2, 2], num_heads=[3, 6], window_size=4, num_labels=5,
    )  # fmt: skip


def convnext() -> Built:
    """Depthwise convolutions and layer norm."""
    return _of(
        "ConvNextConfig", "ConvNextForImageClassification", torch.randn(IMAGE),
        hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], num_labels=5,
    )  # fmt: skip


def resnet() -> Built:
    """Bottlenecks."""
    return _of(
        "ResNetConfig", "ResNetForImageClassification", torch.randn(IMAGE),
        embedding_size=32, hidden_sizes=[64, 96, 128, 192], depths=[1, 2, 2, 1], num_labels=5,
    )  # fmt: skip


def mobilevit() -> Built:
    """Inverted residuals, and attention over unfolded patches."""
    return _of(
        "MobileViTConfig", "MobileViTForImageClassification", torch.randn(IMAGE),
        image_size=64, hidden_sizes=[48, 64, 80], neck_hidden_sizes=[16, 24, 32, 48, 56, 64, 160],
        num_attention_heads=4, num_labels=5,
    )  # fmt: skip


def segformer() -> Built:
    """A pyramid of attention with reduced keys and values, and a head of linear layers."""
    return _of(
        "SegformerConfig", "SegformerForSemanticSegmentation", torch.randn(IMAGE),
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 96], num_attention_heads=[1, 2, 4, 4],
        decoder_hidden_size=96, num_labels=5,
    )  # fmt: skip


def wav2vec2() -> Built:
    """An encoder of waveforms with a classifier."""
    return _of(
        "Wav2Vec2Config", "Wav2Vec2ForSequenceClassification", torch.randn(1, 3200),
        hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, classifier_proj_size=64,
        conv_dim=(48, 48, 48), conv_stride=(5, 4, 2), conv_kernel=(10, 4, 3), num_feat_extract_layers=3,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_labels=5,
    )  # fmt: skip


def gpt2() -> Built:
    """A decoder whose linear layers store their weights transposed."""
    return _of(
        "GPT2Config", "GPT2LMHeadModel", _ids(), options={"use_cache": False},
        vocab_size=300, n_positions=64, n_embd=96, n_layer=3, n_head=4,
    )  # fmt: skip


def t5_encoder() -> Built:
    """RMS norm, relative positions as a bias, a gated feed-forward layer."""
    return _of(
        "T5Config", "T5EncoderModel", _ids(), 96,
        vocab_size=300, d_model=96, d_kv=24, d_ff=256, num_layers=3, num_heads=4, feed_forward_proj="gated-gelu",
    )  # fmt: skip


def whisper_encoder() -> Built:
    """An encoder of spectrograms with a fixed number of frames."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    settings = WhisperConfig(
        num_mel_bins=40, d_model=96, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=288,
        max_source_positions=64, decoder_layers=1, decoder_attention_heads=4,
    )  # fmt: skip
    return Logits(WhisperEncoder(settings), 96), (torch.randn(1, 40, 128),)


HUGGING_FACE: dict[str, Architecture] = {
    "hf_bert": Architecture(bert, SOURCE, ("model.classifier",)),
    "hf_distilbert": Architecture(distilbert, SOURCE, ("model.classifier",)),
    "hf_vit": Architecture(vit, SOURCE, ("model.classifier",)),
    "hf_swin": Architecture(swin, SOURCE, ("model.classifier",)),
    "hf_convnext": Architecture(convnext, SOURCE, ("model.classifier",)),
    "hf_resnet": Architecture(resnet, SOURCE, ("model.classifier.1",)),
    "hf_mobilevit": Architecture(mobilevit, SOURCE, ("model.classifier",)),
    "hf_segformer": Architecture(segformer, SOURCE, ("model.decode_head.classifier",)),
    "hf_wav2vec2": Architecture(wav2vec2, SOURCE, ("model.classifier",)),
    "hf_gpt2": Architecture(gpt2, SOURCE, ("model.lm_head",)),
    "hf_t5_encoder": Architecture(t5_encoder, SOURCE, ("head",)),
    "hf_whisper_encoder": Architecture(whisper_encoder, SOURCE, ("head",)),
}
"""Name to architecture; not part of ``ZOO``, whose networks need no extra packages."""
