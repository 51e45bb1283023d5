"""`--classes FILE`: a class list for data that bring none, or fewer classes than the data have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from basics.batch import VOID
from basics.errors import UserError
from basics.files import read_text
from datalayouts.polygons import AnnotatedLayout
from segdata.class_groups import ClassGroups, group_numbers, is_groups, parse_groups
from segdata.class_tables import difference, has_colours, read_class_table
from segdata.labels import ColourLabels, IndexLabels, MergedLabels
from segdata.layouts import Layout
from segdata.palettes import distinct_palette
from segdata.reading import DataError


def with_classes(layout: Layout, path: Path | None) -> Layout:
    """The data set with the classes that the file in ``path`` says.

    A file of groups (`segdata.class_groups`) brings the data's classes together to fewer. A class list
    (`segdata.class_tables`) names the classes of data that bring none, settles which of several counts, adds colours
    (to see them in, where the masks are known to hold numbers), or puts the classes in another order.

    Raises:
        UserError: the data bring no classes and ``path`` is None or a file of groups; or the names do not fit.
    """
    if path is None:
        if not layout.class_names:
            raise DataError(layout.class_fault)
        return layout
    if not layout.class_names and not layout.class_fault:
        raise DataError(f"{layout.root}: the data set has no classes")
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--classes {path}: cannot be read: {reason}") from None
    if is_groups(text) and not has_colours(text):
        if not layout.class_names:
            raise DataError(f"{layout.class_fault}; {path} says which of these belong together")
        return _merge(layout, parse_groups(text, path))
    table = read_class_table(path)
    if not layout.class_names:
        layout = replace(layout, remarks=list(layout.remarks))
        layout.take_classes(table)
        return layout
    if set(table.names) != set(layout.class_names):
        raise UserError(
            f"--classes {path} and the data in {layout.root} name other classes: "
            f"{difference(table.names, layout.class_names)}; to merge or drop classes write lines such as "
            "`animal = cat, dog`"
        )
    groups = ClassGroups(path, {name: [name] for name in table.names}, [])
    if table.colours and _stores_numbers(layout):
        return replace(_merge(layout, groups), palette=table.colours)
    if table.colours:
        layout = replace(layout, remarks=list(layout.remarks))
        layout.take_classes(table)
        return layout
    return _merge(layout, groups)


def _stores_numbers(layout: Layout) -> bool:
    """Whether the masks are known to hold numbers, whatever colours somebody gives to the classes."""
    as_they_lie = layout.labels == IndexLabels() or isinstance(layout.labels, ColourLabels)
    return isinstance(layout, AnnotatedLayout) or not as_they_lie


def _merge(layout: Layout, groups: ClassGroups) -> Layout:
    """The data set with the classes of ``groups``, each in the colour of the first that it takes."""
    numbers = group_numbers(groups, layout.class_names, f"the data in {layout.root}", VOID)
    colours = [layout.palette[numbers.index(number)] for number in range(len(groups.names))]
    if len(set(colours)) < len(colours):
        colours = distinct_palette(groups.names)
    return replace(
        layout,
        class_names=groups.names,
        palette=colours,
        labels=MergedLabels(layout.labels, tuple(numbers)),
    )
