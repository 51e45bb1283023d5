"""Tiny random networks of each family of transformers, saved as the library saves them, image processor and all.

folder = save_family("segformer", tmp_path, names=["sky", "land", "sea"])
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from networks.huggingface import import_transformers

NAMES = ["background", "cat", "dog", "tree", "sky"]
SIDE = 64  # of the pictures, and of networks of a fixed size


def _swin(tf: Any) -> Any:
    return tf.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        image_size=SIDE,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


VIT = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
DETR = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 6,
}
# Their GroupNorm has 32 groups, and wants two values in each.
QUERIES = {
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "encoder_feedforward_dim": 16,
    "dim_feedforward": 16,
    "encoder_layers": 1,
    "num_attention_heads": 2,
    "num_queries": 6,
}


def _configs(tf: Any) -> dict[str, Callable[..., Any]]:
    """Family -> its configuration, from the labels."""
    return {
        "segformer": lambda **labels: tf.SegformerConfig(
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 8, 16, 16],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=8,
            **labels,
        ),
        "upernet": lambda **labels: tf.UperNetConfig(
            backbone_config=tf.ConvNextConfig(
                hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
            ),
            hidden_size=8,
            auxiliary_channels=8,
            **labels,
        ),
        "upernet_swin": lambda **labels: tf.UperNetConfig(
            backbone_config=_swin(tf), hidden_size=8, use_auxiliary_head=False, **labels
        ),
        "mobilenet_v2": lambda **labels: tf.MobileNetV2Config(
            depth_multiplier=0.25, output_stride=8, finegrained_output=False, **labels
        ),
        "mobilevit": lambda **labels: tf.MobileViTConfig(
            hidden_sizes=[8, 8, 8],
            neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 8],
            num_attention_heads=2,
            aspp_out_channels=8,
            output_stride=16,
            **labels,
        ),
        "dpt": lambda **labels: tf.DPTConfig(
            **VIT,
            image_size=SIDE,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            is_hybrid=False,
            **labels,
        ),
        "beit": lambda **labels: tf.BeitConfig(
            **VIT,
            image_size=SIDE,
            patch_size=16,
            out_indices=[1, 2, 3, 4],
            use_relative_position_bias=True,
            pool_scales=[1, 2],
            **labels,
        ),
        "data2vec-vision": lambda **labels: tf.Data2VecVisionConfig(
            **VIT,
            image_size=SIDE,
            patch_size=16,
            out_indices=[1, 2, 3, 4],
            use_relative_position_bias=True,
            pool_scales=[1, 2],
            **labels,
        ),
        "mask2former": lambda **labels: tf.Mask2FormerConfig(
            backbone_config=_swin(tf), decoder_layers=2, **QUERIES, **labels
        ),
        "maskformer": lambda **labels: tf.MaskFormerConfig(
            backbone_config=_swin(tf),
            decoder_config=tf.DetrConfig(**DETR),
            fpn_feature_size=64,
            mask_feature_size=64,
            **labels,
        ),
        "oneformer": lambda **labels: tf.OneFormerConfig(
            backbone_config=_swin(tf),
            conv_dim=64,
            mask_dim=64,
            hidden_dim=64,
            encoder_feedforward_dim=16,
            encoder_layers=1,
            decoder_layers=3,
            dim_feedforward=16,
            num_attention_heads=2,
            num_queries=6,
            query_dec_layers=1,
            task_seq_len=8,
            text_encoder_n_ctx=2,
            **labels,
        ),
        "eomt": lambda **labels: tf.EomtConfig(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            mlp_ratio=2,
            num_blocks=2,
            image_size=SIDE,
            patch_size=16,
            num_queries=6,
            **labels,
        ),
    }


FAMILIES = (
    "segformer", "upernet", "upernet_swin", "mobilenet_v2", "mobilevit", "dpt", "beit", "data2vec-vision",
    "mask2former", "maskformer", "oneformer", "eomt",
)  # fmt: skip
UNIVERSAL = ("mask2former", "maskformer", "oneformer", "eomt")


def _processor(tf: Any, family: str) -> Any:
    """As the published ones are set, but for images of `SIDE` pixels."""
    square = {"height": SIDE, "width": SIDE}
    odd = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}  # nobody's, so that a mistake shows
    kinds = {
        "segformer": lambda: tf.SegformerImageProcessor(size=square, **odd),
        "upernet": lambda: tf.SegformerImageProcessor(size=square),
        "upernet_swin": lambda: tf.SegformerImageProcessor(size=square),
        "mobilenet_v2": lambda: tf.MobileNetV2ImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        "mobilevit": lambda: tf.MobileViTImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        "dpt": lambda: tf.DPTImageProcessor(size=square),
        "beit": lambda: tf.BeitImageProcessor(size=square, do_center_crop=False, **odd),
        "data2vec-vision": lambda: tf.BeitImageProcessor(size=square, do_center_crop=False, **odd),
        "mask2former": lambda: tf.Mask2FormerImageProcessor(size=square, **odd),
        "maskformer": lambda: tf.MaskFormerImageProcessor(size=square, **odd),
        "oneformer": lambda: tf.OneFormerImageProcessor(size=square, **odd),
        "eomt": lambda: tf.EomtImageProcessor(
            size={"shortest_edge": SIDE, "longest_edge": None}, do_split_image=True, **odd
        ),
    }
    return kinds[family]()


def save_family(family: str, folder: Path, names: Sequence[str] = NAMES, seed: int = 0) -> Path:
    """A network of ``family`` with random weights, in ``folder``."""
    tf = import_transformers()
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    config = _configs(tf)[family](**labels)
    auto = tf.AutoModelForUniversalSegmentation if family in UNIVERSAL else tf.AutoModelForSemanticSegmentation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = auto.from_config(config)
        liven(network)
        if family == "eomt":  # masks without steep edges, which would look different at each resolution
            network.mask_head.fc3.weight.data.mul_(0.1)
    network.save_pretrained(folder)
    _processor(tf, family).save_pretrained(folder)
    if family == "oneformer":
        _save_tokenizer(folder)
    return folder


def liven(network: torch.nn.Module) -> None:
    """Weights large enough for the classes to differ from pixel to pixel, and BatchNorm with statistics of its own."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim > 1:
                value.normal_(std=1.5 * value[0].numel() ** -0.5)
            elif "norm" not in name:
                value.normal_(std=0.1)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)


def _save_tokenizer(folder: Path) -> None:
    """CLIP's kind of tokenizer, that knows the words of OneFormer's task alone."""
    words = ["the</w>", "task</w>", "is</w>", "semantic</w>"]
    letters = sorted({letter for word in words for letter in word.removesuffix("</w>")})
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in words:
        parts = [*word.removesuffix("</w>")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts[:2] = ["".join(parts[:2])]
            tokens.append(parts[0])
    vocabulary = {
        token: number for number, token in enumerate([*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"])
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
