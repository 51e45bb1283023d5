"""Networks of transformers: what the library's own pipeline says, in the interface of all models.

`tests.families` saves a tiny network of each family by the library's own ``save_pretrained``; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from basics.batch import normalize
from tests.families import FAMILIES, SIDE, UNIVERSAL, save_family

pytest.importorskip("transformers")

from networks import huggingface

SEMANTIC = [family for family in FAMILIES if family not in UNIVERSAL]
FIXED = ("data2vec-vision", "eomt")


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Any:
    """``saved("segformer")`` -> the folder of such a network, made once."""
    root = tmp_path_factory.mktemp("families")
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_family(family, root / family)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def loaded(saved) -> Any:
    """``loaded("segformer")`` -> that network behind our interface, loaded once; leave it as it was."""
    models: dict[str, huggingface.HuggingFaceModel] = {}

    def load(family: str) -> huggingface.HuggingFaceModel:
        if family not in models:
            models[family] = huggingface.load(f"hf:{saved(family)}")
        return models[family].eval()

    return load


def picture(height: int = SIDE, width: int = SIDE, seed: int = 0) -> Image.Image:
    """Coloured blobs: smooth, and different in each channel."""
    grid = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def ours(image: Image.Image) -> torch.Tensor:
    """As every model here is given it: ImageNet-normalised RGB."""
    return normalize(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])


def pipeline(folder: Path, image: Image.Image) -> tuple[Any, Any, Any]:
    """The library's own way: (image processor, its inputs, the model's output)."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    options = {"class_info_file": None} if config.model_type == "oneformer" else {}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **options)
    universal = config.model_type in UNIVERSAL
    auto = (
        transformers.AutoModelForUniversalSegmentation if universal else transformers.AutoModelForSemanticSegmentation
    )
    model = auto.from_pretrained(folder).eval()
    if config.model_type == "oneformer":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        processor = transformers.OneFormerProcessor(processor, tokenizer, task_seq_length=config.task_seq_len)
        inputs = processor(image, ["semantic"], return_tensors="pt")
    else:
        inputs = processor(image, return_tensors="pt")
    given = {name: inputs[name] for name in ("pixel_values", "pixel_mask", "task_inputs") if name in inputs}
    with torch.no_grad():
        return processor, inputs, model(**given)


@pytest.mark.parametrize("family", SEMANTIC)
def test_logits_are_the_librarys(family, saved, loaded):
    """Processor and model of the library on a picture; its logits brought to the picture's size as it does."""
    image = picture()
    _, _, output = pipeline(saved(family), image)
    expected = F.interpolate(output.logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    with torch.no_grad():
        logits = loaded(family)(ours(image))
    assert expected.std() > 0.05  # not a constant that anything would equal
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", UNIVERSAL)
def test_scores_of_queries_are_the_librarys(family, saved, loaded):
    """Log-probabilities whose exponentials are, up to the grid they lie on, what the library takes the argmax of."""
    image = picture(SIDE, SIDE)
    processor, inputs, output = pipeline(saved(family), image)
    if "patch_offsets" in inputs:
        output.patch_offsets = inputs["patch_offsets"]
    (result,) = processor.post_process_semantic_segmentation(
        output, target_sizes=[(SIDE, SIDE)], return_segmentation_scores=True
    )
    expected = F.avg_pool2d(result.segmentation_scores[None], 4)
    expected = expected / expected.sum(1, keepdim=True)
    with torch.no_grad():
        logits, _ = loaded(family).forward_taps(ours(image))
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(1, *logits.shape[-2:]), rtol=0, atol=1e-5)
    assert expected.std() > 0.01
    assert (logits.exp() - expected).abs().mean() < 0.1 * expected.std()
    agreement = (loaded(family)(ours(image)).argmax(1) == result.segmentation).float().mean()
    assert agreement > 0.95, agreement


@pytest.mark.parametrize("family", [family for family in UNIVERSAL if family != "eomt"])
def test_scores_of_queries_by_hand(family, saved, loaded):
    """Sum over queries of softmax(class) without the last entry times sigmoid(mask), in numpy."""
    image = picture()
    _, _, output = pipeline(saved(family), image)
    classes, masks = output.class_queries_logits[0].double().numpy(), output.masks_queries_logits[0].double().numpy()
    odds = np.exp(classes)
    shares = (odds / odds.sum(1, keepdims=True))[:, :-1]
    scores = sum(shares[query][:, None, None] / (1 + np.exp(-masks[query])) for query in range(len(masks)))
    with torch.no_grad():
        logits, _ = loaded(family).forward_taps(ours(image))
    np.testing.assert_allclose(logits[0].numpy(), np.log(scores / scores.sum(0)), atol=2e-3)


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (64, 200), (48, 80)])
def test_eomt_is_tiled_as_by_its_processor(size, saved, loaded):
    """Pictures that are not square: overlapping windows along the longer side, their scores averaged."""
    image = picture(*size)
    processor, inputs, output = pipeline(saved("eomt"), image)
    output.patch_offsets = inputs["patch_offsets"]
    (result,) = processor.post_process_semantic_segmentation(
        output, target_sizes=[size], return_segmentation_scores=True
    )
    expected = result.segmentation_scores / result.segmentation_scores.sum(0)
    with torch.no_grad():
        told = loaded("eomt")(ours(image))[0].softmax(0)
    assert len(inputs["pixel_values"]) > 1 and expected.std() > 0.01
    assert (told - expected).abs().mean() < 0.1 * expected.std()
    assert (told.argmax(0) == result.segmentation).float().mean() > 0.98
