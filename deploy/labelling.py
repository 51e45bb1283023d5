"""A teacher labels pictures: masks in a folder that a training reads, as they are or mended by people.

    python predict.py photos/ --teacher hf:nvidia/segformer-b4-finetuned-ade-512-512 --class-map map.toml --save mask
    python train_kd.py --dataset folder --data-dir labels_segformer-b4-finetuned-ade-512-512 ...

The folder has ``images/``, ``mask/`` (255 = void) and ``classes.txt``. The classes are those of the class map, in the
order of its lines; without one the teacher's own. Void is where the teacher says a class that means nothing, or is not
sure enough.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from basics.batch import VOID
from basics.checkpoint import file_sha256
from basics.device import pick_device
from basics.errors import UserError
from basics.files import write_text
from datachecks.picture_search import masks_below
from datachecks.teacher_masks import is_mended, keep_written, labelled_below, note_written, written_masks
from datalayouts.folder_names import meaning
from deploy.picture_folder import PictureFolder, is_read_alike, is_same_file, rows_of, shows
from deploy.predictor import Options, Predictor, Tally
from deploy.results import KINDS, PICTURED
from deploy.segmenter import Prediction, Segmenter
from deploy.teachers import (
    FittedTeacher,
    TeacherChoice,
    add_teacher_arguments,
    load_alone,
    load_teacher_for,
    refuse_without_teacher,
)
from kd.class_map import NEVER, ClassMap
from kd.class_matching import map_file, read_groups
from kd.teacher_cache import weights_sha256
from networks.cost import count_parameters
from networks.working_size import at_working_size
from scoring.protocol import computes_itself
from segdata.class_tables import CLASS_FILES, class_list_text, read_class_table
from segdata.inputs import Source
from segdata.pairing import IMAGE_SUFFIXES
from segdata.palettes import colour_table, distinct_palette
from segdata.pictures import Picture, PictureFile
from segdata.png_rows import source_of
from segdata.reading import MAX_PIXELS, TOO_LARGE, DataError, read_mask
from segdata.video import Frame

LARGE = 4_000_000  # pixels: a phone has 12 million, the data sets of public teachers less than 1
SMALLER = "--teacher-size 640"


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --teacher and what belongs to it to predict.py."""
    group = parser.add_argument_group("label pictures with a teacher, for a training (docs/teachers.md)")
    add_teacher_arguments(group, None, "in the place of --checkpoint: fcn_resnet50, hf:PLACE, ...")
    group.add_argument(
        "--min-confidence", type=float, default=0.0, metavar="P", help="void where the class has less probability (0)"
    )


def check_label_arguments(args: argparse.Namespace) -> None:
    """Refuse what means nothing without a teacher, or nothing at all.

    Raises:
        UserError: naming the option.
    """
    if not 0 <= args.min_confidence <= 1:
        raise UserError(f"--min-confidence must be from 0 to 1, not {args.min_confidence}")
    if args.teacher and args.checkpoint is not None:
        raise UserError("--checkpoint and --teacher exclude each other: take one of them out")
    refuse_without_teacher(args, {"--min-confidence": args.min_confidence})


def load_labeller(choice: TeacherChoice, min_confidence: float = 0.0, device: str = "auto") -> LabellingSegmenter:
    """The teacher, and the classes that it labels.

    Raises:
        UserError: it cannot be had, the class map does not fit, or there are more classes than a mask can hold.
    """
    if choice.class_map is None:
        model = load_alone(choice)
        teacher = FittedTeacher(choice.label, model, None)
        names = model.class_names or [f"class {number}" for number in range(model.num_classes)]
    else:
        names = read_groups(choice.class_map).names
        teacher = load_teacher_for(choice, SimpleNamespace(name=f"of {choice.class_map}", class_names=names))
    names = _told_apart(names, choice.label)
    if len(names) > VOID:
        raise UserError(f"{choice.label}: {len(names)} classes, and a mask holds at most {VOID}: pass a --class-map")
    target = pick_device(device)
    said = teacher.model if teacher.class_map is None else _WithVoid(teacher.model, teacher.class_map)
    network = at_working_size(said, teacher.model.input_size)  # the few classes are enlarged, not the teacher's many
    palette = colour_table(distinct_palette(names)).tolist()  # 256 of them, so that void has its own, too
    parameters = count_parameters(teacher.model) or 0
    said_by = [weights_sha256(teacher.model), teacher.model.input_size, min_confidence, names]
    said_by += [file_sha256(map_file(choice.class_map)) if choice.class_map else ""]
    said_by += ["full size"] if computes_itself(teacher.model) else []  # ONNX logits were averaged once
    source = hashlib.sha256(json.dumps(said_by).encode()).hexdigest()[:16]
    return LabellingSegmenter(
        network.to(target).eval(), choice.label, names, palette, parameters, 0, target, min_confidence, source
    )


def _told_apart(names: Sequence[str], teacher: str) -> list[str]:
    """The names as a class list can hold them: each in one line, and there once; what was changed is said."""
    found: list[str] = []
    for number, name in enumerate(names):
        plain = " ".join(name.split()) or f"class {number}"
        others = (f"{plain} {count}" for count in itertools.count(2))
        found.append(next(each for each in (plain, *itertools.islice(others, len(names))) if each not in found))
        if found[-1] != name.strip():
            print(f"{teacher}: class {number}, {name!r}, is {found[-1]!r} here: each class needs a name of its own")
    return found


class _WithVoid(nn.Module):
    """A teacher whose logits (N, C + 1, H, W) are of C mapped classes, and of none where it says none of them."""

    def __init__(self, model: nn.Module, class_map: ClassMap) -> None:
        super().__init__()
        self.model, self.class_map = model, class_map

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model(images)
        mapped, speaks = self.class_map.whole_logits(logits), self.class_map.speaks(logits)
        nothing = torch.full_like(mapped[:, :1], NEVER)
        if speaks is not None:
            nothing = nothing.where(speaks[:, None], -NEVER)
        return torch.cat([mapped, nothing], dim=1)


@dataclass(frozen=True)
class LabellingSegmenter(Segmenter):
    """A `Segmenter` that leaves pixels void.

    Attributes:
        min_confidence: those whose class has less probability are.
        source: a digest of the teacher, its size, the classes and the above: all that decides a label, but tiles.
    """

    min_confidence: float = 0.0
    source: str = ""

    def bands(
        self,
        read_rows: Callable[[int, int], torch.Tensor],
        size: tuple[int, int],
        tile: int = 0,
        confidence: bool = False,
    ) -> Iterator[tuple[int, Prediction]]:
        """As `Segmenter.bands`; where nothing is said the confidence is 0."""
        for top, band in super().bands(read_rows, size, tile, confidence=True):
            assert band.confidence is not None
            sure = band.confidence.where(band.mask < len(self.class_names), 0)
            is_void = (band.mask >= len(self.class_names)) | (sure < 255 * self.min_confidence)
            yield top, Prediction(band.mask.masked_fill(is_void, VOID), sure if confidence else None)


class Labeller(Predictor):
    """A `Predictor` whose folder is a data set: beside the masks there are the pictures and the class list.

    Subfolders become part of the names, for a data set has its pictures in one folder, or all of them in subfolders.
    Nothing of another's is lost: a picture of the same name stays with its mask, and so does a mask that people mended.
    """

    def __init__(self, segmenter: LabellingSegmenter, folder: Path, options: Options) -> None:
        super().__init__(segmenter, folder, options)
        self.source = f"labels {segmenter.source} tile {options.tile}"
        self.images = PictureFolder(folder / "images")
        self.written = written_masks(folder)
        self.remarked = False
        self.kept = 0  # masks that people have mended
        self.done = 0  # masks that were there before, of this teacher in this form
        if "mask" in self.files and folder.is_dir():
            for path in sorted(folder.iterdir()):
                _refuse_other_masks(path, segmenter.class_names)

    def results(self, inputs: Sequence[str]) -> list[Path]:
        """As `Predictor.results`, with the pictures of this data set, those of any that a teacher has labelled in the
        folders that are given, and the masks there; what is asked for itself is none of them.
        """
        asked = {Path(text).resolve() for text in inputs}
        # A data set that is asked for is its pictures, unless they lie beside as well.
        folders = [path for path in asked if path.is_dir()]
        asked |= {folder / "images" for folder in folders if not any(map(_may_hold_pictures, folder.iterdir()))}
        found = [self.folder, *labelled_below(folders)]
        places = [folder / kind for folder in found for kind in ("images", *KINDS)]
        masks = [path.resolve() for folder in folders for path in masks_below(folder)]
        return [*masks, *(place for place in places if place.resolve() not in asked)]

    @property
    def memory_advice(self) -> str:
        """As `Predictor.memory_advice`, or a smaller picture for the teacher alone."""
        return f"{super().memory_advice}, or show it smaller to the teacher: {SMALLER}"

    def predict(self, inputs: list[str]) -> Tally:  # type: ignore[override]
        """As `Predictor.predict`, and what makes the masks a data set."""
        try:
            tally = super().predict(inputs)
        finally:
            keep_written(self.folder)
        if self.done:
            were = "mask was" if self.done == 1 else "masks were"
            print(f"{self.done:,} {were} there already, of this teacher in this form: not made again")
        if self.kept:
            are = "mask is" if self.kept == 1 else "masks are"
            print(f"{self.kept:,} {are} a person's, mended or found right: left as before")
        if renamed := self.images.renamed:
            old, new = next(iter(renamed.items()))
            print(
                f"{len(renamed):,} pictures have the name of another one in {self.images.folder}, which stays: they "
                f"are there under names of their own, such as {new} for {old}"
            )
        if "mask" in self.files and tally.pictures + tally.frames:
            print(f"a data set: --dataset folder --data-dir {self.folder}")
        return tally

    def _write(self, source: Source, name: PurePath, picture: Picture, number: int | None = None) -> None:
        path = Path(source.path)
        if "mask" in self.files and picture.height * picture.width > MAX_PIXELS:  # before hours of tiles
            raise DataError(f"{source.shown}: {picture.width}x{picture.height} pixels; {TOO_LARGE}")

        def is_same(other: Path) -> bool:
            if number is None and is_same_file(path, other):
                return True
            with _anew(path, number) as own:
                return shows(other, (own.height, own.width), rows_of(own))

        name = self._name_for(name, is_same)
        if self._is_mended(name) or self._is_done(name, path, self.files):
            self._add_known(source, name, number, None)
        else:
            self._remark_size(source, picture)
            super()._write(source, name, picture, number)
        if "mask" not in self.files or self.images.holds(name):
            return
        if number is None and path.suffix.lower() in IMAGE_SUFFIXES and is_read_alike(path):
            self.images.link(path, name)
            return
        with _anew(path, number) as own:
            self.images.write(name, (own.height, own.width), rows_of(own))

    def _write_frame(self, source: Source, name: PurePath, frame: Frame, number: int) -> np.ndarray:
        height, width = frame.pixels.shape[:2]
        name = self._name_for(name, lambda other: shows(other, (height, width), [frame.pixels]))
        still = [kind for kind in self.files if kind not in PICTURED]
        if self._is_mended(name):  # the teacher's own goes on in the overlay's video
            self._add_known(source, name, number, frame)
            image = torch.from_numpy(frame.pixels).permute(2, 0, 1)
            mask = self.segmenter.predict(image, self.options.tile).mask.numpy()
        elif self._is_done(name, Path(source.path), still):
            self._add_known(source, name, number, frame)
            mask = read_mask(self._mask(name))
        else:
            mask = super()._write_frame(source, name, frame, number)
        if "mask" in self.files and not self.images.holds(name):
            self.images.write(name, (height, width), [frame.pixels])
        return mask

    def _remark_size(self, source: Source, picture: Picture) -> None:
        """Say once that a photograph is far from what public networks were trained on."""
        pixels = picture.height * picture.width
        if pixels < LARGE or self.remarked or self.options.tile or self.segmenter.input_size:
            return
        self.remarked = True
        print(
            f"remark: {source.shown} has {pixels / 1e6:.0f} million pixels, which the teacher sees one by one: "
            f"{SMALLER} takes far less time and memory, and may be nearer to what it was trained on"
        )

    def _name_for(self, name: PurePath, is_same: Callable[[Path], bool]) -> PurePath:
        """The name in the data set; where none is written, nothing that lies there is in the way."""
        return self.images.name_for(name, is_same if "mask" in self.files else lambda _: True)

    def _is_mended(self, name: PurePath) -> bool:
        """Whether there is a mask that a person has worked on."""
        mended = "mask" in self.files and is_mended(self._mask(name), self.written)
        self.kept += mended
        return mended

    def _is_done(self, name: PurePath, original: Path, kinds: Sequence[str]) -> bool:
        """Whether all that is asked for lies there as this teacher made it, of the picture as it is: a labelling was
        stopped, or pictures were added. That no person has mended it is known already.
        """
        mask = self._mask(name)
        done = (
            "mask" in kinds
            and all((self.folder / kind / f"{name}.png").is_file() for kind in kinds)
            and source_of(mask) == self.source
            and original.is_file()
            and original.stat().st_mtime_ns <= mask.stat().st_mtime_ns
        )
        self.done += done
        return done

    def _add_known(self, source: Source, name: PurePath, number: int | None, frame: Frame | None) -> None:
        """The areas of a mask that stays; a `DataError` if it is none that a training would read."""
        if "csv" not in self.options.kinds:
            return
        mask = read_mask(self._mask(name))
        areas = np.bincount(mask.ravel(), minlength=256)[: len(self.segmenter.class_names)]
        size = mask.shape[0], mask.shape[1]
        self._add_areas(source, number, None if frame is None else frame.time, size, areas)

    def _note(self, mask: Path, whole: Path) -> None:
        """Remember the mask, before it is there: later it shows whether a person has mended it. What it was written
        for, the classes, is beside it from the first one on.
        """
        classes = self.folder / "classes.txt"
        if not classes.is_file():  # the same classes, perhaps in words of a person
            write_text(classes, class_list_text(self.segmenter.class_names))
        digest = file_sha256(whole)
        note_written(self.folder, mask.name, digest)
        self.written.setdefault(mask.name, set()).add(digest)

    def _is_a_persons(self, name: PurePath) -> bool:
        return is_mended(self._mask(name), self.written)

    def _mask(self, name: PurePath) -> Path:
        return self.folder / "mask" / f"{name}.png"


def _may_hold_pictures(path: Path) -> bool:
    """Whether it is a picture, or a folder that is no part of a labelled data set."""
    return path.name not in ("images", *KINDS) if path.is_dir() else path.suffix.lower() in IMAGE_SUFFIXES


def _refuse_other_masks(path: Path, names: list[str]) -> None:
    """A `UserError` if ``path``, in the folder of a data set, has masks that a training would read in the place of the
    teacher's, or is a class list that does not fit these: one list cannot name both.
    """
    if path.is_dir() and path.name != "mask" and meaning(path.name)[1] == "mask":
        raise UserError(f"{path} holds masks already, which would be read alone: give another --output-dir")
    if path.name.lower() not in CLASS_FILES or not path.is_file():
        return
    table = read_class_table(path)
    if table.names != names:
        raise UserError(f"{path} names other classes ({', '.join(table.names[:5])}, ...): give another --output-dir")
    if table.colours is not None:
        raise UserError(f"{path} says that masks have colours, and a teacher's have numbers: give another --output-dir")


@contextlib.contextmanager
def _anew(path: Path, number: int | None) -> Iterator[Picture]:
    """The picture, or a page of it, opened once more: its rows come from the top to the bottom once."""
    with PictureFile(path, any_size=True) as file:
        yield file.page((number or 1) - 1)


def make_labeller(args: argparse.Namespace, options: Options) -> Labeller:
    """The labeller of predict.py's arguments."""
    choice = TeacherChoice.of(args)
    segmenter = load_labeller(choice, args.min_confidence, args.device)
    return Labeller(segmenter, args.output_dir or Path(f"labels_{choice.label}"), options)
