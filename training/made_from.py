"""What a training run is made from: a resumed one must be made from the same, or its numbers mean nothing."""

from __future__ import annotations

import contextlib
import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from basics.errors import UserError
from networks.class_names import class_difference, named_classes
from training.arguments import MAY_CHANGE, Arguments, option_of
from training.goal import MIOU


@dataclass(frozen=True)
class MadeFrom:
    """What a run is made from; a resumed one must be made from the same.

    Attributes:
        arguments: as in `Arguments.as_plain`.
        images, val_images: `fingerprint` of the training and of the validation split.
        masks: a short name for what the masks of both hold; empty where that is not known.
        class_names: in their order.
        weight_files: hashes of the files that student, teacher, class map and the weights of the classes come from, by
            role; as ``whole teacher`` that of all it is made of (`kd.teacher_cache.weights_sha256`).
        teacher_classes: the teacher's classes that mean each of ours; None for a teacher with just ours, or none.
        goal: key of what the best student is chosen by.
    """

    arguments: Mapping[str, object]
    images: str
    val_images: str
    masks: str
    class_names: Sequence[str]
    weight_files: Mapping[str, str]
    teacher_classes: Mapping[str, Sequence[str]] | None = None
    goal: str = MIOU.key

    def kept(self) -> dict[str, Any]:
        """By name, for last.pth and config.json; the class names stand beside the weights already."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "class_names"}

    def refuse_other(self, checkpoint: Mapping[str, Any], path: Path, *, allow: bool) -> None:
        """A `UserError` that names what differs in what ``path`` holds; with ``allow``, its classes alone.

        What an older last.pth does not tell is not compared.
        """
        saved = checkpoint["training"]
        arguments = saved.get("arguments")
        if not isinstance(arguments, Mapping):
            raise UserError(f"{path}: damaged: the arguments of its run are missing")
        names = named_classes(checkpoint)
        if names and (difference := class_difference(names, self.class_names)):
            # Whatever is allowed: best.pth and last.pth would give the outputs names that they were not trained for.
            raise UserError(
                f"{path} was made for other classes: {difference}; bring the class list back, or begin a run of "
                f"another --name with --student-weights {path} (which then takes its backbone)"
            )
        if (before := saved.get("goal", self.goal)) != self.goal:
            # Whatever is allowed: scores of two kinds cannot be told which is best.
            raise UserError(
                f"{path} was scored by {before}, and its validation masks now make that {self.goal} (a teacher's masks "
                f"were mended, or came in): bring the masks back, or begin a run of another --name with "
                f"--student-weights {path}"
            )
        if allow:
            return
        refuse_changes(arguments, self.arguments, str(path))
        for key, own, option in (("images", self.images, "train_split"), ("val_images", self.val_images, "val_split")):
            if saved.get(key, own) != own:
                raise UserError(
                    f"{path} was made with other images in the split {self.arguments[option]}, or with masks that "
                    "meant something else: bring the list back, and the class list, or pass --allow-changed"
                )
        if self.masks and saved.get("masks", self.masks) not in ("", self.masks):
            raise UserError(
                f"{path} was made with masks that held something else (some were mended since, or mean other classes): "
                "bring them back, or pass --allow-changed"
            )
        files = saved.get("weight_files")
        roles = {"teacher": "teacher_weights", "whole teacher": "teacher_weights", "class weights": "class_weights"}
        for role, option in roles.items():
            there = files.get(role) if isinstance(files, Mapping) else None
            if there and there != self.weight_files.get(role):
                place = self.arguments[option]
                place = self.arguments["teacher"] if place == "default" else place  # a file may be named there, too
                if role == "whole teacher":
                    raise UserError(
                        f"{path} was made with another teacher than {place} now gives: its weights, normalisation or "
                        "code have changed: bring them back, or pass --allow-changed"
                    )
                raise UserError(
                    f"{path} was made with another {role} than {place} now holds: "
                    "bring that file back, or pass --allow-changed"
                )
        self._refuse_other_map(saved.get("teacher_classes", self.teacher_classes), path)

    def _refuse_other_map(self, saved: Any, path: Path) -> None:
        """A `UserError` that names a class of ours which meant other ones of the teacher's in the run of ``path``."""
        if saved == self.teacher_classes:
            return
        lists = saved.values() if isinstance(saved, Mapping) else () if saved is None else (None,)
        if not all(isinstance(names, list | tuple) and all(isinstance(name, str) for name in names) for names in lists):
            raise UserError(f"{path}: damaged: the teacher's classes of its run are none")
        there, here = ({} if each is None else each for each in (saved, self.teacher_classes))
        name = next((name for name in self.class_names if there.get(name) != here.get(name)), self.class_names[0])
        was, now = (", ".join(each.get(name, [name])) or "nothing" for each in (there, here))
        raise UserError(
            f"{path} was made with another class map: {name!r} was the teacher's {reprlib.repr(was)}, is "
            f"{reprlib.repr(now)}; bring the map of --class-map back, or pass --allow-changed"
        )

    def other_steps(self, saved: Mapping[str, Any]) -> bool:
        """Whether the steps of an epoch are of another size or other images than in the state ``saved``."""
        return saved.get("images") != self.images or any(
            saved["arguments"].get(name) != self.arguments[name]
            for name in ("batch_size", "freeze_batch_size", "freeze_epochs", "epoch_images", "labelled_per_batch")
        )


def fingerprint(ids: Sequence[str]) -> str:
    """A short name for a list of images, to notice that a split has changed."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def refuse_changes(saved: Mapping, now: Mapping[str, object], where: str) -> None:
    """Name the arguments that differ from the saved run's and would make the rest of it another run.

    An argument that the saved run's program did not know yet counts as not given.

    Raises:
        UserError: some differ.
    """
    saved = {**Arguments().as_plain(), **saved}
    changed = [
        f"{option_of(name)} was {reprlib.repr(saved.get(name))}, is {now[name]!r}"
        for name in now
        if name not in MAY_CHANGE and not _same_argument(saved.get(name), now[name])
    ]
    if changed:
        raise UserError(
            f"{where} was made with other arguments: {'; '.join(changed)}; resume with the same ones, "
            "or pass --allow-changed"
        )


def _same_argument(saved: object, now: object) -> bool:
    with contextlib.suppress(RuntimeError):  # a tensor's comparison is no yes or no, nor is that of a list with one
        return not isinstance(saved, torch.Tensor) and saved == now
    return False
