"""The zoo: architectures that tests and benchmarks share, written from public definitions, with random weights."""

from __future__ import annotations

from benchmarks.zoo import (
    concatenation,
    detection,
    language,
    mobile,
    recurrent,
    residual,
    segmentation,
    signals,
    speech,
    vision_transformers,
)
from benchmarks.zoo.architecture import Architecture, Builder
from benchmarks.zoo.miniatures import MINIATURES

ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture(residual.resnet18, "He et al., 2016", ("fc",)),
    "resnet50": Architecture(residual.resnet50, "He et al., 2016", ("fc",)),
    "regnet": Architecture(residual.regnet, "Radosavovic et al., 2020", ("7.2",)),
    "repvgg": Architecture(residual.repvgg, "Ding et al., 2021", ("8.2",)),
    "convnext": Architecture(residual.convnext, "Liu et al., 2022", ("15",)),
    "mobilenet_v2": Architecture(mobile.mobilenet_v2, "Sandler et al., 2018", ("1.3",)),
    "mobilenet_v3": Architecture(mobile.mobilenet_v3, "Howard et al., 2019", ("1.5",)),
    "efficientnet": Architecture(mobile.efficientnet, "Tan and Le, 2019", ("1.3",)),
    "shufflenet_v2": Architecture(mobile.shufflenet_v2, "Ma et al., 2018", ("1.3",)),
    "squeezenet": Architecture(mobile.squeezenet, "Iandola et al., 2016", ("11",)),
    "ghostnet": Architecture(mobile.ghostnet, "Han et al., 2020", ("1.3",)),
    "densenet": Architecture(concatenation.densenet, "Huang et al., 2017", ("1.3",)),
    "inception": Architecture(concatenation.inception, "Szegedy et al., 2016", ("1.3",)),
    "unet": Architecture(segmentation.unet, "Ronneberger et al., 2015", ("out",)),
    "deeplab_v3": Architecture(segmentation.deeplab_v3, "Chen et al., 2017", ("head.1",)),
    "lr_aspp": Architecture(segmentation.lr_aspp, "Howard et al., 2019", ("low", "high")),
    "bisenet": Architecture(segmentation.bisenet, "Yu et al., 2018", ("out",)),
    "ssd_lite": Architecture(
        detection.ssd_lite,
        "Liu et al., 2016; Sandler et al., 2018",
        tuple(f"{head}.{level}.1" for head in ("boxes", "classes") for level in range(4)),
    ),
    "yolo": Architecture(
        detection.yolo,
        "Redmon et al., 2016; Ge et al., 2021; Li et al., 2020",
        tuple(f"detect.{head}.{level}.2" for head in ("boxes", "classes") for level in range(3)),
    ),
    "tcn": Architecture(signals.tcn, "Bai et al., 2018", ("head",)),
    "pointnet": Architecture(signals.pointnet, "Qi et al., 2017", ("head.4", "inputs.dense.2")),
    "autoencoder": Architecture(signals.autoencoder, "Hinton and Salakhutdinov, 2006", ("decoder.5",)),
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
"""Realistic networks with 0.1 to 5 million parameters, and one ResNet-50 of full size."""

ZOO: dict[str, Builder] = MINIATURES | {name: architecture.build for name, architecture in ARCHITECTURES.items()}
"""Every network by name, including the miniatures."""
