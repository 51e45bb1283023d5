"""HTML as a tree of elements: whatever is text is escaped when it is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

Element = ElementTree.Element
Child = Element | str


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """``element("p", "text", child, class_="note", aria_label="x")``.

    A trailing underscore of an attribute's name is dropped, the others become hyphens; None leaves the
    attribute out, True writes it without a value. viewBox and the like keep their capitals.
    """
    node = Element(tag)
    for key, value in attributes.items():
        if value is not None and value is not False:
            node.set(key.rstrip("_").replace("_", "-"), "" if value is True else str(value))
    for child in children:
        if not isinstance(child, str):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + child
        else:
            node.text = (node.text or "") + child
    return node


def write(root: Element) -> str:
    """The whole document."""
    return "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"


@dataclass(frozen=True)
class Cell:
    """A table's cell: what it shows, and what it is sorted by (by its text, if that is None)."""

    content: Child
    sort: float | str | None = None


@dataclass(frozen=True)
class HtmlColumn:
    """A table's column; ``numeric`` ones are flush right, and sorted from the highest value first."""

    title: str
    numeric: bool = True
    sortable: bool = True  # in a table that is


def table(
    columns: Sequence[HtmlColumn],
    rows: Iterable[Sequence[Cell]],
    caption: str,
    *,
    sortable: bool = False,
    row_classes: Sequence[str] | None = None,
    **attributes: object,
) -> Element:
    """A table in a region that scrolls sideways by itself; the first column heads the rows."""
    heads = []
    for column in columns:
        content = element("button", column.title, type="button") if sortable and column.sortable else column.title
        heads.append(element("th", content, scope="col", class_="number" if column.numeric else None))
    body = element("tbody")
    for number, row in enumerate(rows):
        line = element("tr", class_=row_classes[number] if row_classes else None)
        for index, (column, cell) in enumerate(zip(columns, row, strict=True)):
            attrs = {"class_": "number" if column.numeric else None, "data_sort": cell.sort if sortable else None}
            if sortable and column.numeric and cell.sort is None:
                attrs["data_sort"] = ""
            line.append(element("td" if index else "th", cell.content, scope=None if index else "row", **attrs))
        body.append(line)
    inner = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        body,
        **attributes,
        data_sortable=sortable,
    )
    return element("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def details(summary: str, *children: Child) -> Element:
    return element("details", element("summary", summary), *children)
