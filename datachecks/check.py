"""Look at all that a data set has: before a training, in a dry run, and file by file in ``dataset.py --check``."""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from datachecks.census import Census, SplitCensus, decoding_fault, open_census
from datachecks.rules import Finding, judge
from segdata.layouts import CHECK_LISTS_ALL, Layout, SplitFiles
from segdata.parallel import map_in_order


@dataclass
class Verdict:
    """What is to be said of a data set.

    Attributes:
        faults: of its files, one line each.
        findings: of the whole, see `datachecks.rules`.
        is_first: nobody has counted this data set before.
    """

    faults: list[str]
    findings: list[Finding]
    is_first: bool

    def summary(self) -> Iterator[Finding]:
        """A line for all faulty files together, then the findings."""
        if self.faults:
            more = f"; and {len(self.faults) - 1} more: {CHECK_LISTS_ALL}"
            yield Finding(self.faults[0] + more * (len(self.faults) > 1), stops=True)
        yield from self.findings

    @property
    def remarks(self) -> list[str]:
        """What may be meant."""
        return [finding.line for finding in self.findings if not finding.stops]

    @property
    def problem(self) -> str | None:
        """What keeps a training from meaning anything: the first such line, and how many more there are."""
        wrong = [finding.line for finding in self.summary() if finding.stops]
        more = f"; and {len(wrong) - 1} more: see `python dataset.py --check`" * (len(wrong) > 1)
        return wrong[0] + more if wrong else None


def look_at(layout: Layout, splits: Mapping[str, SplitFiles], train: str, val: str) -> Verdict:
    """What a training on the split ``train`` that scores on ``val`` is told; either may be missing in ``splits``."""
    with open_census(layout) as census:
        counted = census.take(splits)
        return _verdict(census, counted, train, val)


def invitation(args: argparse.Namespace) -> str:
    """What to tell a person who has not seen these data yet; ``args`` as `dataset.add_data_arguments` makes them."""
    given = {"--dataset": args.dataset, "--data-dir": args.data_dir, "--classes": args.classes}
    given["--val-share"] = args.val_share
    given |= {"--train-split": args.train_split} if args.train_split != "train" else {}
    given |= {"--val-split": args.val_split} if args.val_split != "val" else {}
    options = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    return f"to see what the labels mark: {shlex.join(['python', 'dataset.py', *options, '--stats'])}"


def _verdict(census: Census, counted: Mapping[str, SplitCensus], train: str, val: str) -> Verdict:
    both = train in counted and val in counted and train != val
    shared = census.shared_images(counted[val], counted[train]) if both else {}
    faults = list(dict.fromkeys(fault for split in counted.values() for fault in split.faults))
    return Verdict(faults, judge(census.layout, counted, train, val, shared), census.is_first)


# -- python dataset.py --check -----------------------------------------------------------------------


@dataclass
class Report:
    """What a check found: images by split, faults (one line each) and remarks that are no faults.

    Attributes:
        is_first: nobody has counted this data set before.
    """

    images: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    is_first: bool = False

    def __str__(self) -> str:
        return "\n".join(
            [
                *(f"  {split:<10} {count:6,} images" for split, count in self.images.items()),
                *(f"remark: {remark}" for remark in self.remarks),
                *(f"fault: {fault}" for fault in self.faults),
                f"{len(self.faults) or 'no'} fault{'s' * (len(self.faults) != 1)}",
            ]
        )


def check_layout(layout: Layout, train: str = "train", val: str = "val") -> Report:
    """Check all splits of ``layout``, decoding every file anew; one that several splits share is read once.

    Args:
        train, val: which splits are to be trained and scored on, if they are there.
    """
    report = Report()
    splits: dict[str, SplitFiles] = {}
    for split in layout.splits():
        splits[split], faults = layout.scan(split)
        report.faults += faults
        report.images[split] = len(splits[split].ids)
    if not splits:
        report.faults.append(layout.why_no_splits())
    with open_census(layout, anew=True) as census:
        counted = census.take(splits)
        verdict = _verdict(census, counted, train, val)
        report.remarks += _other_overlaps(census, counted, train, val)
    images = dict.fromkeys(path for files in splits.values() for path in files.images)
    found = map_in_order(decoding_fault, images, desc="checking", total=len(images))
    report.faults += [fault for fault in found if fault]
    report.faults += verdict.faults
    report.faults += [finding.line for finding in verdict.findings if finding.stops]
    report.faults = list(dict.fromkeys(report.faults))
    report.remarks[:0], report.is_first = verdict.remarks, verdict.is_first
    for role, split in (("train", train), ("val", val)):
        if splits and split not in splits:
            report.remarks.append(
                f"{layout.root}: no split {split!r} (there: {', '.join(splits)}); name another with --{role}-split"
            )
    return report


def _other_overlaps(census: Census, counted: Mapping[str, SplitCensus], train: str, val: str) -> Iterator[str]:
    """Images that other splits share, of which by their names one is to be learnt and one to be scored."""
    learnt = [name for name in counted if "train" in name and "val" not in name]
    scored = [name for name in counted if ("val" in name or "test" in name) and "train" not in name]
    found = []
    for first, second in itertools.product(learnt, scored):
        if (first, second) != (train, val) and (shared := census.shared_images(counted[second], counted[first])):
            found.append(f"{first} and {second} ({len(shared)}, for example {next(iter(shared))})")
    if found:
        yield f"{census.layout.root}: splits have images in common: {'; '.join(found)}: scores will flatter"
