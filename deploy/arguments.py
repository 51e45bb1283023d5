"""What the command lines of export.py and quantize.py share."""

from __future__ import annotations

import argparse

from deploy.exporting import Deployed
from deploy.model_card import ModelCard
from deploy.quantized import GraphModel
from networks.base import SegmentationModel
from networks.cost import count_parameters
from networks.model_file import ModelFile


def add_form_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --uint8 and --argmax, for `make_deployed`."""
    parser.add_argument("--uint8", action="store_true", help="normalisation inside: raw RGB, uint8 (N, 3, H, W), in")
    parser.add_argument("--argmax", action="store_true", help="the most likely class, uint8 (N, H, W), out")


def make_deployed(
    network: SegmentationModel, checkpoint: ModelFile, args: argparse.Namespace, int8: GraphModel | None = None
) -> Deployed:
    """A checkpoint's ``network``, or its ``int8`` form, with the input and output that the command line asks for."""
    parameters = count_parameters(network)
    assert parameters is not None  # those of an ONNX teacher alone may be unknown
    card = ModelCard.of_checkpoint(
        checkpoint,
        parameters,
        input="uint8" if args.uint8 else "normalized",
        output="mask" if args.argmax else "logits",
        precision="fp32" if int8 is None else "int8",
    )
    return Deployed(int8 or network, card)
