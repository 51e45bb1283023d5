"""Segmentation data sets as tensors; run by itself, this script sets data up and checks them.

    python dataset.py                                    find (or extract) VOC 2012 and say what is there
    python dataset.py --download                         fetch it first
    python dataset.py --check                            read every file once and list all faults
    python dataset.py --stats --train-split train_aug    class frequencies and weights, as CSV and PNG, and a sheet
                                                         of images of each class with their labels
    python dataset.py --dataset folder --data-dir DIR    the same for your own data (docs/data.md says in which forms)

A sample is a dict:

    image  uint8   (3, H, W)  RGB; normalised later, on the device (`basics.batch.prepare_batch`)
    mask   uint8   (H, W)     classes 0..C-1, 255 = void; all 255 where the image has no mask; widened on the device
    valid  bool    (H, W)     False where the crop reached beyond the image
    box    float32 (4,)       (x0, y0, x1, y1) the crop's window in pixels of the original image, at any working size
    flip   bool               whether the window was mirrored
    jitter float32 (3,)       factors of brightness, contrast, saturation, still to be applied (`basics.batch`); if any
    index  int, id str, size int64 (2,) = original (H, W)
    labelled bool              whether it has a mask; only where some have and some have not
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from basics.errors import UserError, choose, run_cli  # first: Ctrl-C while torch is imported ends quietly

# isort: split
import torch
from torch.utils.data import Dataset

from basics.batch import VOID
from datachecks.check import check_layout, invitation
from datachecks.stats import count_classes, frequency_table, save_stats
from datalayouts.coco import find_coco
from datalayouts.demo import find_demo
from datalayouts.folders import find_folder
from datalayouts.given_classes import with_classes
from datalayouts.labelme import find_labelme
from datalayouts.published import find_ade20k, find_cityscapes, find_voc
from datalayouts.setup import set_up
from datalayouts.splitting import DEFAULT_SHARE, with_val_split
from segdata.decode_cache import DecodedFiles, Shape, open_cache
from segdata.layouts import Layout, SplitFiles
from segdata.reading import check_sizes, read_image
from segdata.sampler import EpochSampler, seeded
from segdata.transforms import full_sample, to_original, to_working_size

__all__ = [
    "DATASETS",
    "EpochSampler",
    "SegmentationDataset",
    "add_data_arguments",
    "build_dataset",
    "build_split",
    "find_layout",
]

# name -> function from --data-dir to the layout found there
DATASETS: dict[str, Callable[[Path], Layout]] = {
    "voc": find_voc,
    "folder": find_folder,
    "demo": find_demo,
    "ade20k": find_ade20k,
    "cityscapes": find_cityscapes,
    "coco": find_coco,
    "labelme": find_labelme,
}


class SegmentationDataset(Dataset[dict]):
    """One split of a data set on disk.

    Args:
        layout: where things lie.
        split: which list of images.
        transform: a function (image uint8 (3, H, W), mask uint8 (H, W)) -> sample; None gives the
            whole image at native size.
        decode_cache: read from a file of decoded pixels (`segdata.decode_cache`), made on first use;
            a path names the folder to keep it in.
        files: other files than the split's: fewer, or more without masks.
        input_size: the working size: images and masks are brought to so many pixels on the longer side before the
            transform sees them; 0: native.

    Raises:
        DataError: a list or a pair is missing or malformed; also on reading a damaged file, whether
            here or in a DataLoader worker.
    """

    def __init__(
        self,
        layout: Layout,
        split: str,
        transform: Callable | None = None,
        decode_cache: bool | str | Path | None = None,
        files: SplitFiles | None = None,
        input_size: int = 0,
    ):
        self.layout = layout
        self.input_size = input_size
        self.split = split
        self.transform = transform
        self.files, self._own_files = files or layout.files(split), files is None
        self.name, self.root = layout.name, layout.root
        self.class_names, self.palette = layout.class_names, layout.palette
        self.num_classes = len(layout.class_names)
        self._cache: DecodedFiles | None = None
        if decode_cache:
            folder = None if decode_cache is True else Path(decode_cache)
            self._cache = open_cache(layout, split, self.files, self._read_files, folder, input_size)

    @property
    def ids(self) -> list[str]:
        return self.files.ids

    @property
    def list_name(self) -> str:
        """What the list of images is called: as the split, and by a digest where they are others than the split's."""
        if self._own_files:
            return self.split
        return f"{self.split}-{hashlib.sha256(json.dumps(sorted(self.ids)).encode()).hexdigest()[:8]}"

    @property
    def has_masks(self) -> bool:
        """False for an unlabelled test split, whose masks are all void."""
        return self.num_labelled > 0

    @property
    def num_labelled(self) -> int:
        """How many images have masks: the first ones."""
        return len(self.files.masks or [])

    def require_masks(self) -> None:
        """Raise a `UserError` where there is nothing to learn or score."""
        if not self.has_masks:
            raise UserError(
                f"{self.name}/{self.split}: this split has no masks: nothing to learn or score here ({self.root}; "
                "docs/data.md says where masks are looked for)"
            )

    def image_path(self, index: int) -> Path:
        return self.files.images[index]

    def mask_path(self, index: int) -> Path | None:
        return self.files.masks[index] if self.files.masks and index < self.num_labelled else None

    def __len__(self) -> int:
        return len(self.files.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        """The sample at an index, or at ``(index, seed)`` with its augmentation drawn from that seed alone."""
        index, seed = key if isinstance(key, tuple) else (key, None)
        index = range(len(self))[index]  # IndexError past the end, as a sequence must
        image, mask, size = self._read(index)
        if self.transform is None:
            if self._cache:  # a view of the file, which must not be written to
                image, mask = image.clone(), mask.clone()
            sample = full_sample(image, mask)
        else:
            with seeded(seed):
                sample = self.transform(image, mask)
        if self.input_size:
            height, width = mask.shape
            sample["box"] = to_original(sample["box"], (height, width), size)
        sample |= {"index": index, "id": self.ids[index], "size": torch.tensor(size)}
        if 0 < self.num_labelled < len(self):
            sample["labelled"] = index < self.num_labelled
        return sample

    def whole(self, input_size: int = 0) -> SegmentationDataset:
        """The same images, whole: at native size, or at another working size."""
        same = copy.copy(self)
        same.transform = None
        if input_size != self.input_size:
            same.input_size, same._cache = input_size, None  # what is cached is of another size
        return same

    def _read(self, index: int) -> tuple[torch.Tensor, torch.Tensor, Shape]:
        """The pair at working size, image uint8 (3, h, w) and mask uint8 (h, w), and the native (H, W).

        From a cache the pair is a view of the file.
        """
        if self._cache:
            return *self._cache.read(index), self._cache.size(index)
        image, mask = self._read_files(self.image_path(index), self.mask_path(index))
        height, width = mask.shape
        return *to_working_size(image, mask, self.input_size), (height, width)

    def _read_files(self, image_path: Path, mask_path: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode image and mask and check them against each other; without a mask all is void."""
        image = read_image(image_path)
        if mask_path is None:
            return image, torch.full(image.shape[1:], VOID, dtype=torch.uint8)
        mask = self.layout.read_labels(mask_path)
        check_sizes(image, mask, image_path, mask_path)
        return image, torch.from_numpy(mask)


def find_layout(
    name: str, data_dir: str | Path = "data", *, classes: Path | None = None, val_share: float | None = None
) -> Layout:
    """Find data set ``name`` below ``data_dir``.

    Args:
        classes: see `datalayouts.given_classes`.
        val_share: see `datalayouts.splitting`.

    Raises:
        UserError: an unknown name, missing data, or classes that are not known or do not fit.
    """
    if name not in DATASETS and Path(name).is_dir():
        raise UserError(f"--dataset {name}: a folder; its form goes there: --dataset folder --data-dir {name}")
    layout = choose(DATASETS, name, "data set")(Path(data_dir))
    return with_val_split(with_classes(layout, classes), val_share)


def build_dataset(
    name: str,
    data_dir: str | Path,
    split: str,
    transform: Callable | None = None,
    decode_cache: bool | str | Path | None = None,
    *,
    classes: Path | None = None,
    val_share: float | None = None,
) -> SegmentationDataset:
    """One split of a data set by name; see `find_layout` and `SegmentationDataset`."""
    layout = find_layout(name, data_dir, classes=classes, val_share=val_share)
    return SegmentationDataset(layout, split, transform, decode_cache)


def layout_of(args: argparse.Namespace) -> Layout:
    """The data set that the arguments of `add_data_arguments` name; several splits are best made of one layout."""
    return find_layout(args.dataset, args.data_dir, classes=args.classes, val_share=args.val_share)


def build_split(args: argparse.Namespace, split: str) -> SegmentationDataset:
    """A split of the data set that the arguments of `add_data_arguments` name."""
    return SegmentationDataset(layout_of(args), split)


def add_data_arguments(parser: argparse.ArgumentParser, *, train: bool = True) -> None:
    """Add --dataset, --data-dir, --classes, --val-share, --val-split and, for scripts that train, --train-split."""
    group = parser.add_argument_group("data")
    known = ", ".join(DATASETS)
    group.add_argument("--dataset", default="voc", metavar="NAME", help=f"one of {known} (default: voc)")
    group.add_argument("--data-dir", default="data", type=Path, metavar="DIR", help="where data lie (default: data)")
    group.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="fewer classes, by lines such as `animal = cat, dog`; or a class list for data that bring none",
    )
    if train:
        group.add_argument("--train-split", default="train", metavar="SPLIT", help="what to train on (default: train)")
    group.add_argument("--val-split", default="val", metavar="SPLIT", help="what to score on (default: val)")
    group.add_argument(
        "--val-share",
        type=float,
        metavar="SHARE",
        help=f"of images kept for val by chance, where nothing says which ({DEFAULT_SHARE})",
    )


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument(
        "--download", action="store_true", help="fetch the archive if neither it nor the data are there"
    )
    parser.add_argument("--no-verify", action="store_true", help="take an archive whose md5 is not the published one")
    parser.add_argument("--check", action="store_true", help="read every file of every split; exit status 1 on faults")
    parser.add_argument("--stats", action="store_true", help="class frequencies of both splits, and images with masks")
    parser.add_argument("--output-dir", default="data", type=Path, metavar="DIR", help="for --stats (default: data)")
    return parser


def main(args: argparse.Namespace) -> int | None:
    chosen = {"classes": args.classes, "val_share": args.val_share}
    find = functools.partial(find_layout, args.dataset, args.data_dir, **chosen)
    layout = set_up(args.dataset, args.data_dir, find, fetch=args.download, verify=not args.no_verify)
    print(f"{layout.name}: {layout.root}, {len(layout.class_names)} classes")
    for remark in layout.remarks if not args.check else ():  # a check says them itself
        print(f"remark: {remark}")
    if args.check:
        report = check_layout(layout, args.train_split, args.val_split)
        print(report)
        if report.is_first:
            print(invitation(args))
        return 1 if report.faults else 0
    for split in layout.splits():
        print(f"  {split:<10} {_count_images(layout, split)}")
    splits = list(dict.fromkeys([args.train_split, args.val_split]))
    if not args.stats:  # just looking: what is not there is not asked for
        splits = [split for split in splits if split in layout.splits() and layout.scan(split)[0].masks]
    counted = [count_classes(layout, split) for split in splits]
    if counted:
        print(f"\n{frequency_table(counted)}")
    if args.stats:
        from datachecks.sheets import save_sheets  # only here: it takes matplotlib, and everybody imports this module

        for stats in counted:
            print("saved", *save_stats(stats, args.output_dir), *save_sheets(layout, stats.split, args.output_dir))
    return None


def _count_images(layout: Layout, split: str) -> str:
    files, faults = layout.scan(split)
    masks = "" if files.masks is not None else ", no masks"
    return f"{len(files.ids):6,} images{masks}" + f", {len(faults)} faults (see --check)" * bool(faults)


if __name__ == "__main__":
    run_cli(main, get_args_parser)
