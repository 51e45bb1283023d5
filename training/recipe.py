"""What arguments mean together: the losses of a run, and its name."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from basics.device import settle_amp
from basics.errors import UserError, choose
from kd.distiller import Recipe
from kd.losses import PAPER_LAMBDAS, PRESETS, term_name
from networks.model_spec import Rates
from networks.sources import short_name
from training.arguments import Arguments
from zoo import rates_of

QAT_RATES = Rates(lr=1e-4)  # of a student that is trained already (docs/int8.md)


def make_recipe(args: Arguments) -> Recipe:
    """The losses of the command line: the preset's, or cross-entropy; then what is given explicitly.

    Raises:
        UserError: an unknown loss or preset, a weight that is none, or nothing that would train the classifier.
    """
    preset = choose(PRESETS, args.preset, "preset") if args.preset else None
    weights = preset.dials if preset else {"ce": 1.0}
    explicit = {"kl": args.alpha, "cosine": args.beta}
    for option, (name, factor) in PAPER_LAMBDAS.items():
        value = getattr(args, option)
        explicit[name] = None if value is None else factor * value
    weights |= {name: weight for name, weight in explicit.items() if weight is not None}
    for term in args.loss:
        given, _, weight = term.partition("=")
        name = term_name(given)
        try:
            weights[name] = float(weight)
        except ValueError:
            raise UserError(f"--loss {term}: give NAME=WEIGHT, such as --loss {name}=0.5") from None
    temperature = args.temperature
    if temperature is None:
        temperature = preset.temperature if preset else 4.0
    recipe = Recipe(weights, temperature=temperature, adaptive=bool(preset and preset.adaptive))
    recipe.require_output()
    return recipe


def settle(args: argparse.Namespace, device: torch.device) -> None:
    """Fill in what `Arguments` leave to the machine and to the student: --amp, --lr and --backbone-lr-factor.

    A choice of --amp that was made is not judged here: see `basics.device.check_amp`.
    """
    if args.amp == "auto":
        args.amp = settle_amp(device, "off" if args.qat else "auto")
    if args.lr is None or args.backbone_lr_factor is None:
        rates = QAT_RATES if args.qat else rates_of(args.student, args.student_weights)
        if args.backbone_lr_factor is None:  # the two were measured together
            args.backbone_lr_factor = rates.backbone_lr_factor if args.lr is None else 1.0
        if args.lr is None:
            args.lr = rates.lr


def name_run(args: Arguments, recipe: Recipe) -> None:
    """Fill in --name: the resumed run's own, or one of its data, student, losses, masks and seed."""
    if args.name:
        return
    if args.resume and args.resume != "auto":
        folder = Path(args.resume).resolve().parent
        args.output_dir, args.name = folder.parent, folder.name
        return
    weights = recipe.weights if recipe.names("hard") else {"ce": 0.0, **recipe.weights}
    terms = "_".join(f"{name}{weight:g}" for name, weight in weights.items() if (name, weight) != ("ce", 1.0))
    parts = [
        args.dataset,
        *([args.classes.stem] if args.classes else []),
        short_name(args.student),
        terms or "baseline",
    ]
    parts += [f"labels{args.labels}"] if args.labels is not None else []
    parts += ["with", *(Path(place).name for place in args.unlabelled)] if args.unlabelled else []
    parts += [f"{args.labelled_per_batch}labelled"] if args.labelled_per_batch else []
    parts += ["qat"] if args.qat else []
    args.name = "_".join([*parts, f"seed{args.seed}"])
