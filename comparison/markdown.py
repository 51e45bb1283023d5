"""results.md: the table and all that has to be said beside it, as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from comparison.budgets import BUDGETS, budgets_words
from comparison.notes import commands, made_with, plain_words, protocol, reading_notes
from comparison.scoring import Comparison
from comparison.statistics import Line
from comparison.tables import columns_of, is_text, percent


def escape(text: str) -> str:
    """Plain text as Markdown that shows it, in a table's cell, too."""
    # An underscore inside a word is nothing but itself.
    text = re.sub(r"[\\`*\[\]|$~]|(?<!\w)_|_(?!\w)", lambda found: "\\" + found[0], " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: set[str]) -> str:
    """A Markdown table; the columns whose titles are in ``left`` are flush left, the others right."""
    rule = [":--" if title in left else "--:" for title in titles]
    lines = [[escape(cell) for cell in row] for row in [titles, *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def to_markdown(comparison: Comparison, lines: Sequence[Line]) -> str:
    """The whole of results.md."""
    columns = columns_of(comparison.plan)
    titles = [title for title, _, _ in columns]
    cells = [[cell(line) for _, cell, _ in columns] for line in lines]
    parts = [
        f"# {escape(comparison.plan.name)}",
        *map(escape, plain_words(lines)),
        table(titles, cells, {title for title in titles if is_text(title)}),
        *([f"![{escape(budgets_words(comparison, lines))}]({BUDGETS})"] if comparison.plan.has_budgets else []),
        f"Protocol: {escape(protocol(comparison))}.",
        "\n".join(f"- {escape(note)}" for note in reading_notes(comparison)),
        "## IoU % by class, mean over seeds",
        _class_table(comparison, lines),
        "## Made with",
        table(["what", "value"], made_with(comparison), {"what", "value"}),
        "## Commands",
        *(f"{escape(title)}:\n\n```sh\n{command}\n```" for title, command in commands(comparison)),
        "Every run by itself, with its command line, is in results.csv; the plan is config.toml.",
    ]
    return "\n\n".join(parts) + "\n"


def _class_table(comparison: Comparison, lines: Sequence[Line]) -> str:
    several = len(comparison.plan.groups) > 1
    titles = ["class", *(f"{line.method} {line.group.title}" if several else line.method for line in lines)]
    rows = [[name, *(percent(line.iou[name], 1) for line in lines)] for name in comparison.dataset.class_names]
    return table(titles, rows, {"class"})
