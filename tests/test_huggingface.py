"""Networks of transformers: what the library's own pipeline says, in the interface of all models.

`tests.families` saves a tiny network of each family by the library's own ``save_pretrained``; nothing is downloaded.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import SyncBatchNorm
from torch.nn import functional as F

from basics.batch import normalize
from basics.checkpoint import save_atomic
from basics.errors import UserError
from dataset import build_dataset
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe
from kd.losses import LOSSES
from networks import huggingface
from networks.cost import count_macs
from networks.folding import fold_batchnorm
from scoring.protocol import evaluate_model
from tests.families import FAMILIES, NAMES, SIDE, UNIVERSAL, save_family
from tests.tiny import TinyModel, tiny_batch
from zoo import create_model, load_any_teacher, load_checkpoint_model, model_file_dict

pytest.importorskip("transformers")

SEMANTIC = [family for family in FAMILIES if family not in UNIVERSAL]


class Labels:
    class_names = tuple(NAMES)
    palette = tuple((index, 0, 0) for index in range(len(NAMES)))


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


# -- as every model ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    """The promises of `networks.base.SegmentationModel`."""

    @torch.no_grad()
    def test_strides_and_channels_are_as_announced(self, family, loaded):
        model = loaded(family)
        for height, width in ((64, 96), (97, 40)):
            logits, taps = model.forward_taps(torch.randn(2, 3, height, width))
            height, width = (side + -side % model.stride for side in (height, width))
            assert set(taps) == set(model.tap_channels) == {"low", "mid", "high", "decoder"}
            for name, tap in taps.items():
                stride = model.tap_strides[name]
                assert tap.shape == (2, model.tap_channels[name], height // stride, width // stride), name
            assert logits.shape == (2, len(NAMES), height // model.logit_stride, width // model.logit_stride)

    @torch.no_grad()
    def test_any_size(self, family, loaded):
        for size in ((32, 32), (50, 75)):
            logits = loaded(family)(torch.randn(1, 3, *size))
            assert logits.shape == (1, len(NAMES), *size) and logits.isfinite().all()

    @torch.no_grad()
    def test_images_of_a_batch_do_not_mix(self, family, loaded):
        images = torch.randn(3, 3, 64, 96)
        together = loaded(family).forward_taps(images)
        alone = loaded(family).forward_taps(images[1:2])
        torch.testing.assert_close(together[0][1:2], alone[0], rtol=1e-3, atol=1e-3)
        for tap, values in alone[1].items():
            torch.testing.assert_close(together[1][tap][1:2], values, rtol=1e-3, atol=1e-3)

    def test_names_and_kept_arguments(self, family, loaded):
        model = loaded(family)
        assert model.class_names == NAMES and model.num_classes == len(NAMES)
        assert json.loads(json.dumps(model.model_args)) == model.model_args

    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_distillation_step_with_every_feature_loss(self, family, loaded, role):
        """One optimizer step: finite losses, gradients in the student's backbone, a teacher that stays as it was."""
        torch.manual_seed(0)
        model, tiny = copy.deepcopy(loaded(family)).train().requires_grad_(True), TinyModel(len(NAMES))
        student, teacher = (model, tiny) if role == "student" else (tiny, model)
        kept = {name: value.clone() for name, value in teacher.state_dict().items()}
        features = [name for name, spec in LOSSES.items() if spec.kind == "features"]
        recipe, live = Recipe({"ce": 1.0, "kl": 1.0} | dict.fromkeys(features, 1.0)), LiveTeacher(teacher)
        distilled = DistilledStudent(student, recipe, live).train()
        distiller = Distiller(distilled, student, recipe, live)
        losses = distiller.losses(tiny_batch(classes=len(NAMES)))
        assert losses.keys() == {"ce", "kl", *features}
        assert all(loss.isfinite() and loss > 0 for loss in losses.values()), losses
        distiller.total(losses).backward()
        moved = [value for value in student.backbone.parameters() if value.grad is not None]
        assert moved and all(value.grad.isfinite().all() for value in moved)
        torch.optim.SGD(distilled.parameters(), lr=1e-4).step()
        assert all(parameter.isfinite().all() for parameter in distilled.parameters())
        assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())

    def test_checkpoint_rebuilds_it_offline(self, family, saved, loaded, tmp_path, monkeypatch):
        """No folder, no hub: the checkpoint alone."""
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(huggingface, "find_repository", lambda spec: pytest.fail("the repository was asked"))
        model, images = loaded(family), torch.randn(1, 3, 64, 96)
        save_atomic(model_file_dict("hf:org/gone", model, Labels), tmp_path / "model.pth")
        again, checkpoint = load_checkpoint_model(tmp_path / "model.pth")
        assert checkpoint["class_names"] == NAMES and not again.training
        with torch.no_grad():
            torch.testing.assert_close(again(images), model(images), rtol=1e-4, atol=1e-4)

    def test_backbone_is_a_part_of_the_network(self, family, loaded):
        """What --freeze-epochs freezes is not all there is."""
        model = loaded(family)
        inside = {id(value) for value in model.backbone.parameters()}
        assert inside < {id(value) for value in model.parameters()}


@pytest.mark.parametrize(
    ("family", "reader"),
    [
        ("segformer", "decode_head"),
        ("upernet", "decode_head"),
        ("upernet_swin", "decode_head"),
        ("beit", "fpn"),
        ("dpt", "neck"),
        ("data2vec-vision", "fpn1"),
    ],
)
def test_maps_are_those_that_the_decoder_reads(family, reader, loaded):
    """The first and the last of what the library hands on from its encoder; tokens as a grid, row by row."""
    model, given = copy.deepcopy(loaded(family)), []
    model.network.get_submodule(reader).register_forward_pre_hook(
        lambda module, args, kwargs: given.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    images = torch.randn(1, 3, 64, 64 if family == "data2vec-vision" else 96)
    with torch.no_grad():
        _, taps = model.forward_taps(images)
    (maps,) = given
    maps = [maps] if isinstance(maps, torch.Tensor) else list(maps)
    if family == "dpt":
        maps = [tokens[:, 1:].unflatten(1, (4, 6)).permute(0, 3, 1, 2) for tokens in maps]
    torch.testing.assert_close(taps["low"], maps[0], rtol=1e-5, atol=1e-5)
    if len(maps) > 1:
        torch.testing.assert_close(taps["mid"], maps[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(taps["high"], maps[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["segformer", "upernet", "mobilenet_v2", "mobilevit", "dpt", "beit"])
def test_decoder_map_comes_before_the_relu_that_the_classifier_reads(family, loaded):
    model, given = copy.deepcopy(loaded(family)), []
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    classifiers = [module for module in convolutions if module.out_channels == len(NAMES)]
    classifiers[-1].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with torch.no_grad():
        _, taps = model.forward_taps(torch.randn(1, 3, 64, 96))
    assert (taps["decoder"] < 0).any()
    torch.testing.assert_close(taps["decoder"].relu(), given[0])


# -- students --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_for_other_classes_has_a_new_classifier_only(family, saved, loaded, capsys):
    published = loaded(family)
    student = create_model(f"hf:{saved(family)}", 3, "default", ["sea", "land", "air"])
    head, state, own = student.head_names(), student.state_dict(), published.state_dict()
    assert 1 <= len(head) <= 3 and head < set(own)
    assert all(torch.equal(state[name], own[name]) for name in own if name not in head)
    assert student.training and student.num_classes == 3
    said = capsys.readouterr().out
    assert "new classifier for 3 classes" in said and len(said.strip().splitlines()) == 1
    with torch.no_grad():
        assert student.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("family", ["segformer", "mask2former"])
def test_a_student_of_as_many_but_other_classes_has_a_new_classifier_too(family, saved, loaded):
    names = [f"class {index}" for index in range(len(NAMES))]
    student = create_model(f"hf:{saved(family)}", len(names), "default", names)
    own = loaded(family).state_dict()
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, own[name])}
    assert changed and changed <= student.head_names()


@pytest.mark.parametrize("names", [NAMES, [name.upper() for name in NAMES], None])
def test_a_student_for_the_same_classes_is_taken_whole(names, saved, loaded, capsys):
    student = create_model(f"hf:{saved('segformer')}", len(NAMES), "default", names)
    own = loaded("segformer").state_dict()
    assert all(torch.equal(value, own[name]) for name, value in student.state_dict().items())
    assert "all weights" in capsys.readouterr().out


def test_a_student_without_weights_is_random_and_seeded(saved, loaded):
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(create_model(f"hf:{saved('segformer')}", 3, "none").state_dict())
    own = loaded("segformer").state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    name = next(name for name in own if name.endswith("proj.weight"))
    assert not torch.equal(states[0][name], own[name])


def test_weights_of_the_library_and_of_a_checkpoint(saved, loaded, tmp_path, capsys):
    """A state_dict by the library's names, and a checkpoint of a student for other classes."""
    own = loaded("segformer")
    save_atomic({key.removeprefix("network."): v for key, v in own.state_dict().items()}, tmp_path / "bare.pth")
    student = create_model(f"hf:{saved('segformer')}", len(NAMES), str(tmp_path / "bare.pth"))
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in student.state_dict().items())
    name = f"hf:{saved('segformer')}"
    save_atomic(model_file_dict(name, own, Labels), tmp_path / "student.pth")
    other = create_model(name, 2, str(tmp_path / "student.pth"), ["a", "b"])
    assert "all but the classifier" in capsys.readouterr().out
    assert torch.equal(other.state_dict()["network.segformer.stages.0.layer_norm.weight"],
                       own.state_dict()["network.segformer.stages.0.layer_norm.weight"])  # fmt: skip


# -- teachers --------------------------------------------------------------------------------------


def test_a_teacher_speaks_of_its_own_classes(saved):
    before = torch.random.get_rng_state()
    teacher = load_any_teacher(f"hf:{saved('segformer')}")
    assert teacher.class_names == NAMES and not teacher.training
    assert not any(value.requires_grad for value in teacher.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_unnamed_classes_may_be_listed_in_the_folder(tmp_path):
    folder = save_family("segformer", tmp_path / "unnamed", names=[f"LABEL_{index}" for index in range(3)])
    assert load_any_teacher(f"hf:{folder}").class_names is None
    (folder / "classes.txt").write_text("sea\nland\nair\n", encoding="utf-8")
    assert load_any_teacher(f"hf:{folder}").class_names == ["sea", "land", "air"]


def test_a_network_that_cannot_segment_yet_is_no_teacher_but_a_student(tmp_path, capsys):
    """An ImageNet encoder, as nvidia/mit-b0 is published."""
    import transformers

    folder = save_family("segformer", tmp_path / "encoder")
    config = transformers.AutoConfig.from_pretrained(folder)
    encoder = transformers.SegformerForImageClassification(config)
    encoder.save_pretrained(folder)
    with pytest.raises(UserError, match=r"no weights for decode_head.*no teacher"):
        load_any_teacher(f"hf:{folder}")
    student = create_model(f"hf:{folder}", 3, "default")
    assert "encoder" in capsys.readouterr().out
    own = encoder.segformer.state_dict()
    taken = student.backbone.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in taken.items())


def test_a_single_class_is_refused(tmp_path):
    """A sigmoid: its one score is no logit among others."""
    folder = save_family("segformer", tmp_path / "binary", names=["object"])
    with pytest.raises(UserError, match="a single class"):
        load_any_teacher(f"hf:{folder}")
    assert create_model(f"hf:{folder}", 2, "default").num_classes == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_costs(family, loaded):
    """Counted on the meta device, where nothing is computed."""
    assert count_macs(loaded(family), 64) > 0


def test_evaluation(saved, demo_data, tmp_path):
    """The students' own protocol, on a teacher with the data set's classes."""
    dataset = build_dataset("demo", demo_data, "val")
    folder = save_family("segformer", tmp_path / "demo", names=dataset.class_names)
    teacher = load_any_teacher(f"hf:{folder}")
    evaluation = evaluate_model(teacher, dataset, torch.device("cpu"))
    assert 0 <= evaluation.scores.miou <= 1


# -- in the house ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["segformer", "mobilenet_v2", "beit"])
def test_maps_are_found_when_batchnorm_is_folded_or_synchronised(family, loaded):
    """Both put other modules in the place of BatchNorm's; what the hooks catch stays the same."""
    model, images = loaded(family), torch.randn(1, 3, 64, 64)
    folded, synchronised = fold_batchnorm(model), SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    assert folded is not model and any(isinstance(module, SyncBatchNorm) for module in synchronised.modules())
    with torch.no_grad():
        logits, taps = model.forward_taps(images)
        for other in (folded, synchronised):
            told, maps = other.forward_taps(images)
            torch.testing.assert_close(told, logits, rtol=1e-3, atol=1e-3)
            for tap, values in taps.items():
                torch.testing.assert_close(maps[tap], values, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["segformer", "upernet"])
def test_it_is_one_graph_for_torch_compile(family, loaded):
    torch.compiler.reset()
    model, images = copy.deepcopy(loaded(family)), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits, taps = torch.compile(model.forward_taps, backend="eager", fullgraph=True)(images)
        expected, maps = model.forward_taps(images)
    assert torch.equal(logits, expected) and all(torch.equal(taps[tap], values) for tap, values in maps.items())
    torch.compiler.reset()


def test_a_frozen_backbone_keeps_its_statistics(loaded):
    """As --freeze-epochs has it: the encoder in eval mode without gradients, the decoder learns."""
    model = copy.deepcopy(loaded("mobilenet_v2")).train()
    model.backbone.requires_grad_(False).eval()
    before = copy.deepcopy(model.backbone.state_dict())
    F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.zeros(2, 64, 64, dtype=torch.long)).backward()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert all(value.grad is None for value in model.backbone.parameters())
    assert any(value.grad is not None for value in model.parameters())


def test_a_network_that_pools_the_image_wants_two_of_them(loaded):
    model = copy.deepcopy(loaded("upernet")).train()
    with pytest.raises(UserError, match="batches of 2 images"):
        model(torch.randn(1, 3, 64, 64))


@pytest.mark.slow
def test_train_evaluate_export(saved, demo_data, tmp_path, run_script):
    """The pair as people write it, with a universal teacher; the student's files need neither folder."""
    names = build_dataset("demo", demo_data, "val").class_names
    student = save_family("segformer", tmp_path / "student", names)
    teacher = save_family("mask2former", tmp_path / "teacher", names)
    data = ("--dataset", "demo", "--data-dir", demo_data, "--device", "cpu")
    flags = ("--alpha", 1, "--beta", 1, "--epochs", 1, "--batch-size", 4, "--crop-size", 64, "--workers", 0)
    networks = ("--student", f"hf:{student}", "--teacher", f"hf:{teacher}", "--output-dir", tmp_path / "runs")
    said = run_script("train_kd.py", *data, *flags, *networks).stdout
    assert "all weights, for the same" in said
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "demo_student_kl1_cosine1_seed0"
    for folder in (student, teacher):
        folder.rename(folder.with_name(f"{folder.name} is gone"))
    scored = run_script("evaluate.py", run / "best.pth", *data).stdout
    run_script("export.py", run / "best.pth", "--output", tmp_path / "net.onnx")
    again = run_script("evaluate.py", tmp_path / "net.onnx", *data).stdout
    scores = [re.findall(r"hf:\S+ +([\d.]+) +([\d.]+)", text) for text in (scored, again)]
    assert scores[0] and scores[0] == scores[1]


def test_a_network_that_cannot_be_used_is_no_failed_download(saved, monkeypatch):
    def refuse(*args):
        raise ValueError("its patches of 14 pixels have no common grid with other networks")

    monkeypatch.setattr(huggingface, "HuggingFaceModel", refuse)
    for load in (load_any_teacher, lambda name: create_model(name, 3, "none")):
        with pytest.raises(UserError, match=r"cannot be used here: its patches of 14 pixels"):
            load(f"hf:{saved('segformer')}")
