"""Networks of transformers (an optional package): any repository or folder with a segmentation network.

    model = load("hf:nvidia/segformer-b0-finetuned-ade-512-512")       # a teacher with its own 150 classes
    model = load_for("hf:nvidia/mit-b0", 3, ["sky", "land", "sea"])    # a student with a new classifier
    model = build("hf:...", 3, **model.model_args)                      # random weights, from what a checkpoint keeps

Networks that score pixels (SegFormer, UPerNet, DPT, BEiT, Data2Vec, MobileNetV2, MobileViT) and universal ones that
score queries (Mask2Former, MaskFormer, OneFormer, EoMT; `networks.queries`) are run by the library's own code. Their
maps: ``low``, ``mid`` and ``high`` of the encoder, whose tokens are laid out as a grid where it is a plain
transformer; ``decoder`` what the classifier reads, before its ReLU. Code from a repository is never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from basics.errors import UserError
from basics.optional_packages import need, quiet_tree_log
from networks.class_lists import same_names
from networks.class_names import named_classes
from networks.hub import Repository, find_repository
from networks.huggingface_model import FAMILIES, HuggingFaceModel, Settings, plain_config
from networks.normalisation import Normalisation
from networks.windows import Windows

if TYPE_CHECKING:  # an optional package
    from types import ModuleType

OLDEST = 5  # its major version; each network of an older minor one works or says why not
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
Mismatch = tuple[str, Sequence[int], Sequence[int]]  # a tensor, its shape in the file, and in the network
TASK = "the task is semantic"  # what OneFormer is told


@cache
def import_transformers() -> ModuleType:
    """The package, or a `UserError` that says how to install it; quiet, for we say ourselves what is loaded."""
    with quiet_tree_log():
        transformers = need("transformers", "transformers", "a network of hf:")
        need("transformers.modeling_utils", "transformers", "a network of hf:")  # the package itself imports nothing
    if int(transformers.__version__.partition(".")[0]) < OLDEST:
        raise UserError(
            f"transformers {transformers.__version__} is too old for hf: networks: pip install --upgrade transformers"
        )
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


# -- what a network is built of --------------------------------------------------------------------


def read_config(repository: Repository) -> Any:
    """The network's configuration, without auxiliary heads.

    Raises:
        UserError: it cannot be had, or is that of no segmentation network known here.
    """
    transformers = import_transformers()
    with repository.explained():
        config = transformers.AutoConfig.from_pretrained(
            repository.source, trust_remote_code=False, **repository.options
        )
    _network_class(config, repository.spec)
    return _trimmed(config)


def _trimmed(config: Any) -> Any:
    """``config`` without what only works in the library's own training."""
    for name in ("use_auxiliary_head", "is_training"):
        if getattr(config, name, False):
            setattr(config, name, False)
    return config


def _network_class(config: Any, spec: str) -> Any:
    """The class of transformers that builds a network of this configuration."""
    transformers = import_transformers()
    semantic = transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    universal = [kind for kind, family in FAMILIES.items() if family.masks_on]
    if type(config) in semantic:
        return semantic[type(config)]
    if config.model_type in universal:
        return transformers.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING[type(config)]
    known = sorted([*(kind.model_type for kind in semantic), *universal])
    raise UserError(f"{spec}: a {config.model_type} is no segmentation network known here; known: {', '.join(known)}")


def read_settings(repository: Repository, config: Any) -> Settings:
    """How the repository's own image processor prepares images; ImageNet's normalisation, said aloud, without one."""
    transformers = import_transformers()
    options: dict[str, Any] = {"trust_remote_code": False, **repository.options}
    if config.model_type == "oneformer":
        options["class_info_file"] = None  # it is for training, and would be downloaded from elsewhere
    processor = None
    with repository.explained():
        if repository.first_file(PROCESSOR_FILES):
            processor = transformers.AutoImageProcessor.from_pretrained(repository.source, **options)
        else:
            print(f"{repository.spec}: brings no image processor: images are normalised as for ImageNet")
    windows = _windows(config, processor)
    task = _task_tokens(repository, config) if config.model_type == "oneformer" else None
    try:
        return Settings(_normalisation(processor), windows, task)
    except (TypeError, ValueError) as error:
        raise UserError(f"{repository.spec}: its image processor's {error}") from error


def _normalisation(processor: Any) -> Normalisation:
    """What an image processor does to the values 0..255, as mean and std of values in 0..1."""
    if processor is None:
        return Normalisation()
    factor = 255 * (float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0)
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    if getattr(processor, "do_normalize", False):
        mean, std = processor.image_mean, processor.image_std
    bgr = bool(getattr(processor, "do_flip_channel_order", False))
    return Normalisation.of([value / factor for value in mean], [value / factor for value in std], bgr)


def _windows(config: Any, processor: Any) -> Windows | None:
    """How images are brought to the size of a network that takes one only, by the processor's habits."""
    family = FAMILIES.get(config.model_type)
    if family is None or not family.fixed_size:
        return None
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    if getattr(processor, "do_split_image", False):
        return Windows(size, "split")
    return Windows(size, "pad" if getattr(processor, "do_pad", False) else "squash")


def _task_tokens(repository: Repository, config: Any) -> list[int]:
    """The token ids of OneFormer's task, as its processor makes them: 0 where there is padding."""
    transformers = import_transformers()
    with repository.explained():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            repository.source, trust_remote_code=False, **repository.options
        )
    tokens = tokenizer(TASK, padding="max_length", max_length=config.task_seq_len, truncation=True)
    return [token * kept for token, kept in zip(tokens["input_ids"], tokens["attention_mask"], strict=True)]


def read_class_names(repository: Repository, config: Any) -> list[str] | None:
    """``id2label`` in order, or the folder's ``classes.txt``; None where the labels are but numbered."""
    if listed := repository.listed_classes(config.num_labels):
        return listed
    names = named_classes({"id2label": config.id2label})
    if names is None or all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None
    return [name.strip() for name in names]


# -- the three ways to a model ---------------------------------------------------------------------


def load(spec: str) -> HuggingFaceModel:
    """The whole network in a folder or repository, in eval mode, for its own classes.

    Raises:
        UserError: it cannot be had, is no segmentation network, or lacks weights.
    """
    repository = find_repository(spec)
    config = read_config(repository)
    if config.num_labels < 2:
        raise UserError(f"{spec}: scores a single class, by a sigmoid; networks here tell at least two apart")
    model, missing = _load(repository, config)
    if missing:
        raise UserError(
            f"{spec}: holds no weights for {', '.join(missing[:2])}{', ...' if len(missing) > 2 else ''}: it was not "
            "trained to segment, so it is no teacher; as a student it starts from the rest"
        )
    return model


def _load(repository: Repository, config: Any) -> tuple[HuggingFaceModel, list[str]]:
    """The network with all the weights there are, and the names of those that there are not."""
    settings, names = read_settings(repository, config), read_class_names(repository, config)
    with repository.explained():
        network, info = _network_class(config, repository.spec).from_pretrained(
            repository.source,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # what does not fit is named below
            **repository.options,
        )
    _refuse_mismatch(info["mismatched_keys"], config, repository)
    with repository.built():
        model = HuggingFaceModel(network, settings, names).eval()
    spare = ("num_batches_tracked", "criterion.empty_weight")
    missing = sorted(name for name in info["missing_keys"] if not name.endswith(spare))
    own = set(dict(model.named_parameters()))
    return model, [name for name in missing if f"network.{name}" in own]


def _refuse_mismatch(found: Iterable[Mismatch], config: Any, repository: Repository) -> None:
    """A `UserError` if tensors are of another shape in the file than in the network."""
    found = sorted(found)
    if not found:
        return
    name, theirs, ours = found[0]
    if all(there[1:] == here[1:] and here[0] - config.num_labels in (0, 1) for _, there, here in found):
        classes = config.num_labels + theirs[0] - ours[0]
        raise UserError(
            f"{repository.spec}: its config.json names {config.num_labels} classes (id2label), its weights are for "
            f"{classes}: mend id2label there, a name for each"
        )
    raise UserError(
        f"{repository.spec}: its weights do not fit its config.json: {name} is {list(theirs)} there, and has to be "
        f"{list(ours)}"
    )


def load_for(
    spec: str, num_classes: int, class_names: Sequence[str] | None = None, *, weights: bool = True
) -> HuggingFaceModel:
    """A student: the network in a folder or repository, for the classes of a data set.

    Of a network for the same classes all is taken; of another one all but the classifier, which is new. What was
    taken is printed. Without ``weights`` all of it is random.
    """
    repository = find_repository(spec)
    config = read_config(repository)
    if not weights:
        settings = read_settings(repository, config)
        with repository.built():
            return _build(plain_config(config), settings, num_classes)
    published, missing = _load(repository, config)
    if not missing and published.num_classes == num_classes and same_names(published.class_names, class_names):
        print(f"{spec}: all weights, for the same {num_classes} classes")
        return published.train()
    kept = cast(dict[str, Any], published.model_args)
    model = _build(kept["config"], Settings.from_plain(kept["settings"]), num_classes)
    new = model.head_names() | {f"network.{name}" for name in missing}
    state = {name: value for name, value in published.state_dict().items() if name not in new}
    model.load_state_dict(state, strict=False)
    part = "the encoder and all it has of the decoder" if missing else "encoder and decoder"
    print(f"{spec}: {part} as published; new classifier for {num_classes} classes (there: {published.num_classes})")
    return model


def build(spec: str, num_classes: int, **model_args: Any) -> HuggingFaceModel:
    """With random weights: from what a checkpoint keeps, without a network; or from the folder or repository."""
    if not model_args:
        return load_for(spec, num_classes, weights=False)
    return _build(model_args["config"], Settings.from_plain(model_args["settings"]), num_classes)


def _build(kept: Mapping[str, Any], settings: Settings, num_classes: int) -> HuggingFaceModel:
    return HuggingFaceModel(_random_network(kept, num_classes), settings)


def _random_network(kept: Mapping[str, Any], num_classes: int) -> nn.Module:
    transformers = import_transformers()
    config = transformers.AutoConfig.for_model(**_offline(kept), num_labels=num_classes)
    return _network_class(config, str(config.model_type))(_trimmed(config))


def _offline(kept: Mapping[str, Any]) -> dict[str, Any]:
    """``kept`` with nothing in it that would make the library fetch weights of a backbone."""
    plain = {key: _offline(value) if isinstance(value, Mapping) else value for key, value in kept.items()}
    return plain | {key: False for key in ("use_pretrained_backbone", "pretrained") if key in plain}
