"""Every loss by name, recipes made of them, and the published mixes.

    from kd.losses import LOSSES, PRESETS, Recipe
    LOSSES["kl"].fn(student_logits, teacher_logits, valid, temperature=4.0)
    Recipe({"ce": 1.0, "cwd_feat@decoder": 30.0, "cosine@low+mid": 1.0})

A loss is a pure function of tensors; `LOSSES` says of which kind it is:

- ``hard``: fn(logits (N, C, H, W), mask (N, H, W) int64, class_weights=None): see `kd.hard_losses`.
- ``logits``: fn(student (N, C, h, w), teacher (N, C, h, w), valid (N, h, w) bool), plus ``temperature`` where
  ``uses_temperature``: see `kd.logit_losses`.
- ``features``: as ``logits``, for feature maps: see `kd.feature_losses`.

A term of a recipe is a loss by its name, or on maps of one's choice, NAME@TAP or NAME@TAP+TAP: a feature loss on
these maps; a hard one, or one on logits, on what an auxiliary head says that looks at them in training (``ce@high``).

All compute in float32 whatever comes in, send a gradient to the student alone, are 0 (but the hard ones) for a student
equal to the teacher, and do not change when a batch is tiled along N, H or W (but ``bpkd``, which finds class borders
where copies meet). In a distributed run the mean over ranks of a loss, and of its gradient, is that of the whole batch
(see `basics.distributed`); all ranks must call it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from basics.errors import UserError, choose
from kd import feature_losses, hard_losses, logit_losses
from networks.base import TAPS

# ---- the registry ----


Kind = Literal["hard", "logits", "features"]


@dataclass(frozen=True)
class LossSpec:
    """One row of `LOSSES`.

    Attributes:
        fn: the loss; its arguments follow from ``kind`` (see the module docstring).
        kind: ``hard``, ``logits`` or ``features``.
        source: the paper, in a few words.
        taps: the feature maps it looks at unless a term names others; their losses are averaged. A loss of another kind
            than ``features`` has some only in a term that names them: those of the auxiliary heads it looks at.
        adapter: the student's map passes through a trained 1x1 convolution to the teacher's channels.
        max_grid: maps are first averaged to at most this many cells a side; None leaves them.
        uses_temperature: ``fn`` takes ``temperature``.
        uses_stride: ``fn`` takes ``stride``, the pixels a cell.
        min_classes: with fewer it has no gradient, whatever the student says.
        rotatable: of ``features``: it sees the teacher's vectors by their inner products alone, which a teacher cache
            keeps. The others look at each channel by itself (its ReLU, its softmax over positions, its deviation, its
            maximum), which means nothing for a rotated vector.
    """

    fn: Callable[..., torch.Tensor]
    kind: Kind
    source: str
    taps: tuple[str, ...] = ()
    adapter: bool = False
    max_grid: int | None = None
    uses_temperature: bool = False
    uses_stride: bool = False
    min_classes: int = 1
    rotatable: bool = False


ENCODER_TAPS = TAPS[:-1]

LOSSES: dict[str, LossSpec] = {
    # The softmax of a single class is 1 everywhere.
    "ce": LossSpec(hard_losses.ce, "hard", "cross-entropy", min_classes=2),
    "focal": LossSpec(hard_losses.focal, "hard", "Lin 2017", min_classes=2),
    "dice": LossSpec(hard_losses.dice, "hard", "Milletari 2016", min_classes=2),
    "kl": LossSpec(logit_losses.kl, "logits", "Hinton 2015", uses_temperature=True, min_classes=2),
    # Of two standardised logits only the sign is left.
    "kl_std": LossSpec(logit_losses.kl_std, "logits", "Sun 2024", uses_temperature=True, min_classes=3),
    "cwd": LossSpec(logit_losses.cwd, "logits", "Shu 2021", uses_temperature=True),
    "bpkd": LossSpec(logit_losses.bpkd, "logits", "Liu 2024", uses_temperature=True, uses_stride=True),
    "dist": LossSpec(logit_losses.dist, "logits", "Huang 2022", min_classes=2),
    # A class is compared with the others: with one other, each unit row is (0, 1) or (1, 0).
    "icsd": LossSpec(logit_losses.icsd, "logits", "Mansourian 2024", min_classes=3),
    "cosine": LossSpec(
        feature_losses.cosine, "features", "Romero 2015", taps=ENCODER_TAPS, adapter=True, rotatable=True
    ),
    "pixelwise": LossSpec(
        feature_losses.pixelwise, "features", "Mansourian 2023", taps=("decoder",), adapter=True, rotatable=True
    ),
    # 16 cells a side: a matrix of 256 x 256 cosines an image.
    "pairwise": LossSpec(feature_losses.pairwise, "features", "Liu 2019", taps=("high",), max_grid=16, rotatable=True),
    "at": LossSpec(feature_losses.at, "features", "Zagoruyko 2017", taps=ENCODER_TAPS, rotatable=True),
    "csd": LossSpec(feature_losses.csd, "features", "Jenssen 2006", taps=ENCODER_TAPS, adapter=True),
    "cwd_feat": LossSpec(
        feature_losses.cwd_feat, "features", "Shu 2021", taps=("decoder",), adapter=True, uses_temperature=True
    ),
    "pkd": LossSpec(feature_losses.pkd, "features", "Cao 2022", taps=("decoder",), adapter=True),
    "attnfd": LossSpec(feature_losses.attnfd, "features", "Mansourian 2024", taps=TAPS, adapter=True),
}


# ---- terms ----


def loss_of(term: str) -> LossSpec:
    """The row of a recipe's term: that of its loss, with the feature maps that the term names.

    Raises:
        UserError: an unknown loss or map.
    """
    name, at, maps = term.partition("@")
    spec = choose(LOSSES, name, "loss")
    if not at:
        return spec
    named = re.split("[+,]", maps)
    for tap in named:
        choose(dict.fromkeys(TAPS), tap, f"feature map in the loss {term!r}:")
    return replace(spec, taps=tuple(tap for tap in TAPS if tap in named))


def term_name(term: str) -> str:
    """The one spelling of a term: maps in the order of `TAPS`, and none where they are the loss's own.

    Raises:
        UserError: as `loss_of`.
    """
    taps, name = loss_of(term).taps, loss_name(term)
    return name if taps == LOSSES[name].taps else f"{name}@{'+'.join(taps)}"


def loss_name(term: str) -> str:
    """The name in `LOSSES` of a recipe's term."""
    return term.partition("@")[0]


# ---- recipes ----


@dataclass(frozen=True)
class Recipe:
    """Which losses make up the total, with which weights.

    Attributes:
        weights: weight by term, spelt as by `term_name`; terms of weight 0 are left out.
        temperature: the T of every loss that has one: those that soften logits, and ``cwd_feat``.
        adaptive: shift weight from the soft and feature terms to the hard ones (see `adaptive_weights`).
        source: the paper of a published mix, in a few words.

    Raises:
        UserError: an unknown loss, a weight or temperature that makes no sense, or no loss at all.
    """

    weights: Mapping[str, float]
    temperature: float = 1.0
    adaptive: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        weights = {term_name(term): weight for term, weight in self.weights.items()}
        for name, weight in weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise UserError(f"the weight of loss {name!r} must be finite and >= 0, not {weight}")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"--temperature must be a number > 0, not {self.temperature}")
        object.__setattr__(self, "weights", {name: w for name, w in weights.items() if w != 0})
        if not self.weights:
            raise UserError("no loss is left: give ce, focal, dice, or a loss with a teacher, a weight above 0")
        if self.heads:  # they are dropped in the end
            self.require_output()

    def require_output(self) -> None:
        """A `UserError` where no term looks at what the student itself says: nothing would train its classifier."""
        if all(loss_of(name).taps for name in self.names("hard", "logits")):
            raise UserError(
                f"{' and '.join(self.weights)} alone: no loss looks at what the student itself says, whose classifier "
                "would stay as it was drawn: give ce, or kl (--alpha), a weight above 0"
            )

    def names(self, *kinds: Kind) -> list[str]:
        """Names of the terms of these kinds, in the recipe's order."""
        return [name for name in self.weights if loss_of(name).kind in kinds]

    def require_classes(self, num_classes: int, known: int | None = None) -> None:
        """A `UserError` that names every term which cannot act on so few classes.

        Args:
            known: how many of them the teacher speaks of, which is what terms on its logits have; None: of all.
        """
        counts = {name: num_classes for name in self.weights}
        if known is not None:
            counts |= dict.fromkeys(self.names("logits"), known)
        idle = [name for name in self.weights if loss_of(name).min_classes > counts[name]]
        if idle:
            least, count = max(loss_of(name).min_classes for name in idle), counts[idle[0]]
            classes = f"{count} class{'es' * (count != 1)}"
            has = f"the data set has {classes}"
            if count != num_classes:
                has = f"the teacher knows {classes} of the data set's {num_classes}"
            raise UserError(
                f"{' and '.join(idle)} would teach nothing: {has}, and at least {least} are needed; leave it out: "
                f"{' '.join(f'--loss {name}=0' for name in idle)}"
            )

    @property
    def needs_teacher(self) -> bool:
        return bool(self.names("logits", "features"))

    def without_hard(self) -> Recipe:
        """The terms of the teacher alone; nothing is shifted from them to labels that are not there."""
        weights = {name: weight for name, weight in self.weights.items() if name not in self.names("hard")}
        return replace(self, weights=weights, adaptive=False)

    @property
    def taps(self) -> list[str]:
        """The feature maps that the recipe's feature losses look at."""
        return sorted({tap for name in self.names("features") for tap in loss_of(name).taps})

    @property
    def heads(self) -> list[str]:
        """The feature maps of the student that have an auxiliary head."""
        return sorted({tap for name in self.names("hard", "logits") for tap in loss_of(name).taps})

    @property
    def dials(self) -> dict[str, float]:
        """The weights for a command line to start from.

        `kl` (--alpha) and `cosine` (--beta) have their places behind the hard terms even at 0: the order of the terms
        is that of a run's name, and of the sum.
        """
        hard = {name: self.weights[name] for name in self.names("hard")}
        return {**hard, "kl": 0.0, "cosine": 0.0, **self.weights}


def adaptive_weights(progress: float) -> tuple[float, float]:
    """Factors of the hard and of the distillation terms at ``progress`` in 0..1: (progress, 1 - progress).

    Source: adaptive loss weighting of AICSD (see `kd.logit_losses.icsd`): alpha = epoch / epochs grows, so that the
    student first follows the teacher and in the end the labels, where the teacher's mistakes would hold it back. Here
    all distillation terms fade; in a remark in the authors' script `icsd` grows with the cross-entropy.

    Raises:
        ValueError: ``progress`` lies outside 0..1.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must lie in 0..1, not {progress}")
    return progress, 1 - progress


# ---- published mixes ----

# The lambdas of the PA/PI recipe (Mansourian 2023) in our scales: command-line name -> (loss, factor).
# pa: the authors' mean over pairs and images is ours. pi: their maps are unit vectors along the height and their
# mean runs over all positions, so that a column's squared distance is divided by the height of the decoder's map,
# 129 for the authors' crops of 513; ours is the squared distance of unit vectors itself.
PAPER_LAMBDAS: dict[str, tuple[str, float]] = {"pa_lambda": ("pairwise", 1.0), "pi_lambda": ("pixelwise", 1 / 129)}

PRESETS: dict[str, Recipe] = {
    "response": Recipe({"ce": 1.0, "kl": 1.0}, temperature=4.0, source="Hinton 2015"),
    "feature": Recipe({"ce": 1.0, "cosine": 1.0}, source="Romero 2015"),
    # The recipe's own weights: its three terms are scale-free.
    "hdl": Recipe({"ce": 0.5, "dice": 0.2, "csd": 0.3}, source="hybrid loss, UNet to FastLiteSSNet"),
    # --pa_lambda 1 --pi_lambda 100, the authors' command line.
    "papi": Recipe(
        {"ce": 1.0, "pairwise": 1.0, "pixelwise": 100 * PAPER_LAMBDAS["pi_lambda"][1]}, source="Mansourian 2023"
    ),
    # The authors' command line, --pi_lambda 10 --pa_lambda 9500 --ALW. Their pi is a KL averaged over classes too:
    # 10 / 21 of ours on VOC. Their pa multiplies another icsd (see there): with a VOC teacher's logits and students
    # from good to untrained, 9500 times theirs comes to 0.2 to 0.6, and 1 times ours to 0.2 to 0.45.
    "aicsd": Recipe({"ce": 1.0, "kl": 10 / 21, "icsd": 1.0}, adaptive=True, source="Mansourian 2024"),
    # The authors' scale is ours: lambda 3, T 4 on logits.
    "cwd": Recipe({"ce": 1.0, "cwd": 3.0}, temperature=4.0, source="Shu 2021"),
    # lambda = beta = gamma = 1 in the authors' segmentation code.
    "dist": Recipe({"ce": 1.0, "dist": 1.0}, source="Huang 2022"),
}
