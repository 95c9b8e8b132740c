"""The zoo: architectures that tests and benchmarks share, written from public definitions, with random weights."""

from __future__ import annotations

from benchmarks.zoo import language, recurrent, speech, vision_transformers
from benchmarks.zoo.architecture import Architecture, Builder
from benchmarks.zoo.miniatures import MINIATURES

ARCHITECTURES: dict[str, Architecture] = {
    "vit": Architecture(vision_transformers.vit, "Dosovitskiy et al., 2021", ("head",)),
    "vit_multihead": Architecture(vision_transformers.vit_multihead, "Dosovitskiy et al., 2021", ("head",)),
    "swin": Architecture(vision_transformers.swin, "Liu et al., 2021", ("head",)),
    "mixer": Architecture(
        vision_transformers.mixer, "Tolstikhin et al., 2021", ("head", *(f"blocks.{i}.tokens.3" for i in range(4)))
    ),
    "bert": Architecture(language.bert, "Devlin et al., 2019", ("classifier",)),
    "gpt": Architecture(language.gpt, "Radford et al., 2019", ("lm_head",)),
    "llama": Architecture(language.llama, "Touvron et al., 2023", ("lm_head",)),
    "conformer": Architecture(speech.conformer, "Gulati et al., 2020", ("head",)),
    "wav2vec": Architecture(speech.wav2vec, "Baevski et al., 2020", ("head",)),
    "ds_cnn": Architecture(speech.ds_cnn, "Zhang et al., 2017", ("11",)),
    "tc_resnet": Architecture(speech.tc_resnet, "Choi et al., 2019", ("7",)),
    "gru": Architecture(recurrent.gru, "Cho et al., 2014", ("head",)),
    "lstm": Architecture(recurrent.lstm, "Hochreiter and Schmidhuber, 1997", ("head",)),
    "crnn": Architecture(recurrent.crnn, "Shi et al., 2017", ("head",)),
}
"""Realistic structure, 0.1 to 5 million parameters (and one ResNet-50 of full size)."""

ZOO: dict[str, Builder] = MINIATURES | {name: architecture.build for name, architecture in ARCHITECTURES.items()}
"""Every network, tiny ones included, by name."""
