"""Tables, CSV and reports as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int | Collection[int] = 1) -> str:
    """Columns as wide as their widest cell, two spaces apart; numbers stand flush right.

    A title may bring spaces of its own that keep its column wide.

    Args:
        left: how many columns, the first ones, are text and stand flush left; or which, counted from 0.
    """
    text = range(left) if isinstance(left, int) else left
    lines = [list(titles), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in text else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def csv_text(rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> str:
    """A header and a line a row; floats come back to the same bits, None is an empty cell.

    Args:
        columns: by default those of all rows, in the order of their first appearance.
    """
    text = io.StringIO()
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def format_report(title: str, sections: Mapping[str, Mapping[str, object]]) -> str:
    """A heading, then each section's ``key  value`` lines in aligned columns."""
    width = max((len(key) for section in sections.values() for key in section), default=0)
    lines = [title, "=" * len(title), ""]
    for name, section in sections.items():
        if not section:
            continue
        if name:
            heading = name[:1].upper() + name[1:]
            lines += [heading, "-" * len(heading)]
        lines += [f"{key:<{width}}  {_readable(value)}".rstrip() for key, value in section.items()]
        lines.append("")
    return "\n".join(lines)


def _readable(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_readable, value)) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_readable(item)}" for key, item in value.items()) or "-"
    return str(value)
