"""The pictures of a run: which are trained on, with masks and without, which are scored on, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from basics import distributed
from basics.errors import UserError
from basics.machine import loader_processes
from basics.signals import ignore_stop_signals
from datachecks import teacher_masks
from datachecks.census import open_census
from datachecks.check import invitation, look_at
from datachecks.unlabelled import find_unlabelled
from dataset import EpochSampler, SegmentationDataset, layout_of
from kd.cached_teacher import collate_for
from kd.distiller import Distiller, Recipe
from scoring.protocol import scoring_batch, scoring_loader
from segdata.layouts import Layout, SplitFiles
from segdata.reading import DataError
from segdata.sampler import Mixture, mix_seed
from segdata.transforms import TrainTransform
from training.arguments import Arguments, teacher_options
from training.goal import AGREEMENT, MIOU, Goal
from training.made_from import fingerprint
from training.stages import Stage

LABELS_STREAM = 0x1ABE15  # parts the draw of --labels from the other draws of a seed


@dataclass
class Data:
    """The two splits of a run, and the order in which it sees its training images.

    Attributes:
        images, val_images: short names for the lists of training and validation images.
        masks: a short name for what the masks of both splits hold; empty where that is not known.
        sources: a line for each place that pictures without masks came from.
        goal: what the best student is chosen by.
    """

    train_set: SegmentationDataset
    val_set: SegmentationDataset
    sampler: EpochSampler
    images: str
    val_images: str
    masks: str
    sources: list[str]
    goal: Goal = MIOU
    _val_loader: DataLoader | None = None

    def score_against(self, said: SegmentationDataset) -> None:
        """Score against these masks, which are what a teacher says: the validation split brings no others."""
        self.val_set, self.goal, self._val_loader = said, AGREEMENT, None
        if distributed.is_main():
            print(
                f"warning: no person has drawn or checked the masks of {said.name}/{said.split}: scored is the "
                "student's agreement with the teacher, and best.pth follows it; that is no mIoU, and says nothing of "
                "where the teacher errs"
            )

    def loader(self, stage: Stage, args: Arguments, device: torch.device, distiller: Distiller) -> DataLoader:
        """This rank's batches of an epoch of the stage, with all that its teacher's cache says of them.

        Set the sampler's epoch before each pass.
        """
        self.train_set.transform = TrainTransform(stage.crop_size, scale_of(args))
        workers = loader_processes(args.workers, device)
        self.sampler.batch_size = stage.batch_size
        return DataLoader(
            self.train_set,
            batch_size=stage.batch_size // distributed.world_size(),
            sampler=self.sampler,
            drop_last=True,
            collate_fn=collate_for(distiller.teacher, distiller.stride),
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetched(device) if workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_stop_signals if workers else None,
            generator=torch.Generator(),  # its own: making an iterator leaves the global one alone
        )

    def val_loader(self, args: Arguments, device: torch.device) -> DataLoader:
        """This rank's batches of the validation split, always the same loader."""
        if self._val_loader is None:
            batch_size = scoring_batch(args.eval_batch_size, device)
            workers = loader_processes(args.workers, device)
            self._val_loader = scoring_loader(self.val_set, device, batch_size, workers, lasting=True)
        return self._val_loader

    def describe(self) -> dict[str, int]:
        """How many training pictures have masks and how many have none, for the run's folder and report."""
        labelled = self.train_set.num_labelled
        return {"labelled images": labelled, "unlabelled images": len(self.train_set) - labelled}


def prefetched(device: torch.device) -> int:
    """Batches that each loader process fetches ahead: a GPU is faster than the slowest picture of a few."""
    return 2 if device.type == "cpu" else 4


def scale_of(args: Arguments) -> tuple[float, float]:
    """--scale-range."""
    low, high = args.scale_range
    return low, high


def build_data(args: Arguments, *, resumed: bool) -> Data:
    """Find both splits and look whether their labels make sense; all ranks must call it.

    Raises:
        UserError: data are missing or mean nothing, or the ranks see different files.
    """
    problem = None
    sources: list[str] = []
    with distributed.main_first():  # it counts what is in the data
        layout = layout_of(args)
        train_set, val_set = training_split(args, layout), SegmentationDataset(layout, args.val_split)
        whole = train_set  # what is judged: a draw of few masks may lack any class
        if args.labels is not None or args.unlabelled:
            train_set, sources = with_pictures(args, train_set, val_set)
        if distributed.is_main() and not args.dry_run:  # which has looked already
            problem = find_problem(args, whole, val_set)
    if problem := distributed.gather(problem)[0]:
        raise DataError(problem)
    if args.decode_cache and not args.dry_run:
        with distributed.main_first():  # it fills the cache
            files = None if train_set is whole else train_set.files
            train_set = _of_files(whole, files, args.decode_cache)
    if distributed.is_main() and args.crop_size > args.input_size > 0:
        print(
            f"remark: pictures of {args.input_size} pixels on the longer side do not fill a crop of {args.crop_size}; "
            f"the rest is padding, and --crop-size {args.input_size} takes less time"
        )
    images, val_images = fingerprint_of(train_set), fingerprint_of(val_set)
    seen = distributed.gather((images, val_images, train_set.class_names, resumed))
    if any(other != seen[0] for other in seen):
        raise UserError("the processes see different files: --data-dir and --output-dir must be shared by all")
    if distributed.is_main():
        for line in sources:
            print(line)
    masks = distributed.gather("" if args.dry_run or not distributed.is_main() else content_of(train_set, val_set))[0]
    data = Data(train_set, val_set, make_sampler(args, train_set), images, val_images, masks, sources)
    with distributed.main_first():
        said = teacher_masks.unmended(val_set.files.masks or [])
    if said and len(said) == len(val_set):
        data.score_against(val_set)
    elif said and distributed.is_main():
        print(teacher_masks.warning(val_set, len(said)))
    return data


def fingerprint_of(dataset: SegmentationDataset) -> str:
    """A short name for a split's list of images, of what their masks mean, and of how many have one."""
    some = [f"{dataset.num_labelled} labelled"] if dataset.num_labelled < len(dataset) else []
    return fingerprint([*dataset.ids, *map(str, dataset.layout.labels.key), *some])


def content_of(*datasets: SegmentationDataset) -> str:
    """A short name for how many pixels of which class each mask has, out of the census; empty where none is kept."""
    splits = {str(number): each.files.labelled for number, each in enumerate(datasets) if each.has_masks}
    with open_census(datasets[0].layout) as census:
        if census.is_first or not splits:  # nothing can be written here: all masks would be read once more
            return ""
        counted = census.take(splits).values()
    return fingerprint(
        [f"{mask.labels} {mask.pixels}" if mask else "" for each in counted for mask in each.masks or []]
    )


def training_split(args: Arguments, layout: Layout) -> SegmentationDataset:
    """The split that is trained on, at the working size; the one that is scored on stays native, as its masks do."""
    return SegmentationDataset(layout, args.train_split, input_size=args.input_size)


def make_sampler(args: Arguments, train_set: SegmentationDataset) -> EpochSampler:
    """The order of this rank's training images.

    Raises:
        UserError: --labelled-per-batch where all images are labelled, or none is.
    """
    mixture = None
    if args.labelled_per_batch:
        if not 0 < train_set.num_labelled < len(train_set):
            raise UserError(
                "--labelled-per-batch mixes pictures with and without masks, and here "
                f"{'none' if not train_set.has_masks else 'every one'} has a mask: leave it out, or add pictures with "
                "--unlabelled"
            )
        mixture = Mixture(train_set.num_labelled, args.labelled_per_batch)
    rank, ranks = distributed.rank(), distributed.world_size()
    return EpochSampler(
        len(train_set),
        args.seed,
        rank=rank,
        world_size=ranks,
        mixture=mixture,
        epoch_samples=args.epoch_images,
    )


# -- which pictures ----------------------------------------------------------------------------------


def with_pictures(
    args: Arguments, train_set: SegmentationDataset, val_set: SegmentationDataset
) -> tuple[SegmentationDataset, list[str]]:
    """The training split with as many of its masks as --labels says, and the pictures of --unlabelled behind them.

    Returns:
        it, and a line for each place that pictures came from.
    """
    files = train_set.files
    if args.labels is not None:
        train_set.require_masks()
        files = draw_labelled(files, args.labels, args.seed, f"{train_set.name}/{train_set.split}")
    lines: list[str] = []
    if args.unlabelled:
        others, lines = find_unlabelled(train_set.layout, args.unlabelled, files, val_set.files)
        files = SplitFiles([*files.ids, *others.ids], [*files.images, *others.images], files.masks or None)
    if not files.ids:
        raise UserError("--labels 0 leaves no picture to train on: name some with --unlabelled")
    return _of_files(train_set, files), lines


def draw_labelled(files: SplitFiles, count: int, seed: int, where: str) -> SplitFiles:
    """``count`` of the images, drawn from ``seed``; a larger draw of the same seed holds them, too.

    Raises:
        UserError: there are not so many.
    """
    if count > len(files.ids):
        raise UserError(f"--labels {count}: {where} has only {len(files.ids)} images with masks")
    generator = torch.Generator().manual_seed(mix_seed(seed, LABELS_STREAM))
    return files.part(sorted(torch.randperm(len(files.ids), generator=generator)[:count].tolist()))


def _of_files(
    dataset: SegmentationDataset, files: SplitFiles | None, decode_cache: Path | None = None
) -> SegmentationDataset:
    return SegmentationDataset(
        dataset.layout, dataset.split, decode_cache=decode_cache, files=files, input_size=dataset.input_size
    )


# -- what they are good for --------------------------------------------------------------------------


def judged_files(args: Arguments, *datasets: SegmentationDataset) -> dict[str, SplitFiles]:
    """What of the splits is looked at: all that has masks, or the pictures alone where --labels 0 uses no mask."""
    judged = {each.split: each.files.labelled for each in datasets}
    if args.labels == 0 and args.train_split != args.val_split:
        judged |= {
            each.split: SplitFiles(each.files.ids, each.files.images, None)
            for each in datasets
            if each.split == args.train_split
        }
    return judged


def find_problem(args: Arguments, train_set: SegmentationDataset, val_set: SegmentationDataset) -> str | None:
    """What keeps a run on these data from meaning anything; prints what is remarkable about them."""
    verdict = look_at(train_set.layout, judged_files(args, train_set, val_set), train_set.split, val_set.split)
    for remark in verdict.remarks:
        print(f"remark: {remark}")
    if verdict.is_first:
        print(invitation(args))
    return verdict.problem


def fit_recipe(args: Arguments, recipe: Recipe, data: Data) -> Recipe:
    """The losses that these pictures allow: without a single mask, those of the teacher alone.

    Raises:
        UserError: there is nothing to learn from, or nothing to score against.
    """
    if not recipe.needs_teacher:
        if unused := teacher_options(args):
            print(
                f"remark: no loss asks a teacher: without effect are {', '.join(unused)}; --alpha 1 gives one a weight"
            )
        for dataset in (data.train_set, data.val_set):
            if not dataset.has_masks:
                raise UserError(
                    f"{dataset.name}/{dataset.split}: no image has a mask, and no loss has a teacher: give one a "
                    "weight (--alpha 1), or bring masks (docs/data.md says where they are looked for)"
                )
        if data.train_set.num_labelled < len(data.train_set):
            raise UserError("--unlabelled: no loss has a teacher, who alone can speak of these pictures: --alpha 1")
    if data.train_set.has_masks or not recipe.names("hard"):
        return recipe
    print(f"no training picture has a mask: the teacher alone is followed ({', '.join(recipe.names('hard'))} left out)")
    recipe = recipe.without_hard()
    recipe.require_output()
    return recipe
