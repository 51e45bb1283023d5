"""report.html: one file that needs no network, made of the table, charts, pictures and notes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from basics.batch import VOID
from comparison.budgets import budgets_png, budgets_source, budgets_words
from comparison.charts import STYLES, Curve, bars_svg, curves_svg, gains_svg, make_curve, swatch
from comparison.markup import Cell, Element, HtmlColumn, details, element, table, write
from comparison.notes import commands, made_with, plain_words, protocol, reading_notes
from comparison.panels import Panel, make_panels
from comparison.scoring import Comparison
from comparison.statistics import DASH, Line, best_method, class_gain
from comparison.tables import HELPS, SortKey, amount, columns_of, gain_cell, is_text, percent, signed, spread_cell
from segdata.drawing import VOID_COLOR

HERE = Path(__file__).parent
# The document may load nothing, from nowhere: even a mistake here cannot make it ask the network.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
MOST_EPOCHS = 25  # rows of the curves' table


def to_html(comparison: Comparison, lines: Sequence[Line]) -> str:
    """The report as text; whatever comes from data or files is escaped."""
    title = f"{comparison.plan.name}: does distillation help?"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", title),
        element("style", (HERE / "report.css").read_text(encoding="utf-8")),
    )
    sections = {
        "Result": _result(comparison, lines),
        "IoU by class": _classes(comparison, lines),
        "Training curves": _curves(comparison, lines),
        "Pictures": _pictures(comparison, lines),
        "How it was made": _making(comparison),
    }
    sections = {name: children for name, children in sections.items() if children}
    links = [element("li", element("a", name, href=f"#{_anchor(name)}")) for name in sections]
    body = element(
        "body",
        element("a", "Skip to the result", href="#main", class_="skip"),
        element(
            "header",
            element("h1", title),
            *(element("p", sentence, class_="lead") for sentence in plain_words(lines)),
            element("nav", element("ul", *links), aria_label="Sections"),
            element("button", "Theme: system", type="button", id="theme", hidden=True),
        ),
        element("main", *(_section(name, children) for name, children in sections.items()), id="main", tabindex="-1"),
        element("p", id="announce", class_="hidden", role="status"),
        element("script", (HERE / "report.js").read_text(encoding="utf-8")),
    )
    return write(element("html", head, body, lang="en"))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _section(name: str, children: Sequence[Element]) -> Element:
    anchor = _anchor(name)
    return element("section", element("h2", name, id=anchor), *children, aria_labelledby=anchor)


# -- result --------------------------------------------------------------------------------------


def _result(comparison: Comparison, lines: Sequence[Line]) -> list[Element]:
    shown = columns_of(comparison.plan)
    columns = [HtmlColumn(title, not is_text(title)) for title, _, _ in shown]
    rows = [[_cell(title, show(line), key(line)) for title, show, key in shown] for line in lines]
    main = table(
        columns,
        rows,
        f"Methods compared on {protocol(comparison).partition(':')[0]}",
        sortable=True,
        row_classes=[line.kind for line in lines],
        id="results",
    )
    notes = element("ul", *(element("li", note) for note in reading_notes(comparison)))
    return [
        _figures(comparison, lines),
        main,
        *_budgets(comparison, lines),
        *_gains(lines),
        element("h3", "How to read it"),
        notes,
    ]


def _budgets(comparison: Comparison, lines: Sequence[Line]) -> list[Element]:
    """The chart of score over masks, if there are several numbers of them."""
    if not comparison.plan.has_budgets:
        return []
    source, words = budgets_source(budgets_png(comparison, lines)), budgets_words(comparison, lines)
    same = "takes the same number of steps" if comparison.plan.args.time_budget is None else "trains for the same time"
    caption = f"Mean over seeds and standard deviation, by number of masks; every run {same}."
    return [element("figure", element("img", src=source, alt=words), element("figcaption", caption))]


def _gains(lines: Sequence[Line]) -> list[Element]:
    """A chart a group of the differences to the baseline, where any method has an interval."""
    figures = []
    for group in dict.fromkeys(line.group for line in lines if line.kind == "method"):
        gains = [(line.method, line.difference) for line in lines if line.group == group and line.difference]
        if not any(gain.interval for _, gain in gains):
            continue
        words = "; ".join(f"{method} {gain_cell(gain)}" for method, gain in gains)
        svg = gains_svg(gains, f"Difference to the baseline in points, {group.title}: {words}")
        region = f"Chart of the differences to the baseline, {group.title}"
        chart = element("div", svg, class_="scroll chart", tabindex="0", role="region", aria_label=region)
        caption = f"Difference to the baseline in points of mIoU, {group.title}: mean over seeds on its 95 % interval."
        figures.append(element("figure", chart, element("figcaption", caption)))
    return figures


def _cell(title: str, text: str, key: SortKey) -> Cell:
    if title.endswith(HELPS) and text != DASH:
        return Cell(element("span", text, class_=f"verdict {text.split()[0]}"), key)
    return Cell(text, key)


def _first_trained(lines: Sequence[Line]) -> Line:
    """The first line that is no teacher's: the first baseline with runs, or what there is."""
    trained = [line for line in lines if line.kind != "teacher"]
    return next((line for line in trained if line.kind == "baseline"), trained[0])


def _figures(comparison: Comparison, lines: Sequence[Line]) -> Element:
    """The few numbers that matter most, of the best method of the first group that has runs."""
    first = _first_trained(lines)
    best = best_method(lines, first.group) or first
    teacher = next((line for line in lines if line.kind == "teacher"), None)
    figures = [
        (f"mIoU % of {best.method}, {first.group.title}", spread_cell(best.miou)),
        ("points to the baseline (95 % interval)", gain_cell(best.difference)),
    ]
    if teacher:
        figures.append(("of the teacher's mIoU", f"{percent(best.share, 1)} %"))
    size = f"{amount(best.parameters, 1e6)} M"
    if teacher and teacher.parameters and best.parameters and teacher.parameters > best.parameters:
        size += f", {teacher.parameters / best.parameters:.1f} x fewer than the teacher"
    figures.append(("parameters", size))
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in figures), class_="figures"
    )


# -- classes -------------------------------------------------------------------------------------


def _classes(comparison: Comparison, lines: Sequence[Line]) -> list[Element]:
    children = []
    groups = comparison.plan.groups
    for group in groups:
        shown = [line for line in lines if line.kind == "teacher" or line.group == group]
        if len(groups) > 1:
            children.append(element("h3", group.title))
        best = best_method(lines, group)
        chosen = [line for line in shown if line.kind in ("teacher", "baseline") or line is best]
        children += [_bar_legend(chosen), _bar_table(comparison, chosen, group.title), _class_table(comparison, shown)]
    return children


def _style(line: Line) -> str:
    return {"teacher": "bar-teacher", "baseline": "bar-baseline"}.get(line.kind, "bar-best")


def _bar_legend(lines: Sequence[Line]) -> Element:
    items = []
    for line in lines:
        square = element("span", class_=f"square {_style(line)}", aria_hidden="true")
        items.append(element("li", square, line.method))
    return element("ul", *items, class_="legend")


def _bar_table(comparison: Comparison, lines: Sequence[Line], title: str) -> Element:
    """A row a class: bars, the numbers beside them, and the gain of the best method on the baseline."""
    baseline = next((line for line in lines if line.kind == "baseline"), None)
    best = next((line for line in lines if line.kind == "method"), None)
    columns = [HtmlColumn("class", False), HtmlColumn("bars", False, sortable=False)]
    columns += [HtmlColumn(line.method) for line in lines]
    columns += [HtmlColumn("gain")] if baseline and best else []
    rows = []
    for name in comparison.dataset.class_names:
        values = [line.iou[name] for line in lines]
        bars = bars_svg([(_style(line), line.iou[name]) for line in lines])
        row = [Cell(name, name), Cell(bars, None), *(Cell(percent(value, 1), value) for value in values)]
        if baseline and best:
            gain = class_gain(comparison, best, name)
            row.append(Cell(DASH if gain is None else signed(gain, 1), gain))
        rows.append(row)
    caption = f"IoU % by class, {title}, mean over seeds"
    if baseline and best:
        caption += f"; gain: {best.method} less baseline"
    return table(columns, rows, caption, sortable=True, class_="by-class")


def _class_table(comparison: Comparison, lines: Sequence[Line]) -> Element:
    columns = [HtmlColumn("class", False), *(HtmlColumn(line.method) for line in lines)]
    rows = [
        [Cell(name, name), *(Cell(percent(line.iou[name], 1), line.iou[name]) for line in lines)]
        for name in comparison.dataset.class_names
    ]
    return details("IoU by class of every method", table(columns, rows, "IoU % by class, every method", sortable=True))


# -- curves --------------------------------------------------------------------------------------


def _curves(comparison: Comparison, lines: Sequence[Line]) -> list[Element]:
    children = []
    teacher = comparison.teacher.miou if comparison.teacher else None
    groups = comparison.plan.groups
    for group in groups:
        methods = [line.method for line in lines if line.kind != "teacher" and line.group == group]
        curves = [make_curve(method, index, comparison.of(method, group)) for index, method in enumerate(methods)]
        curves = [curve for curve in curves if curve.points]
        if not curves:
            continue
        if len(groups) > 1:
            children.append(element("h3", group.title))
        ends = ", ".join(f"{curve.name} {percent(list(curve.points.values())[-1][0], 1)} %" for curve in curves)
        label = f"Validation mIoU by epoch, mean over seeds; at the last epoch: {ends}"
        svg = curves_svg(group.stem, curves, teacher, label)
        region = f"Chart of the training curves, {group.title}"
        chart = element("div", svg, class_="scroll chart", tabindex="0", role="region", aria_label=region)
        caption = (
            "Validation mIoU in percent by epoch: mean over seeds, in a band from the lowest to the highest seed. "
            "The axis is made for the scores after the first quarter of training."
        )
        if len(curves) > STYLES:
            caption += f" Line styles repeat after {STYLES} methods."
        figure = element("figure", _curve_legend(curves, teacher), chart, element("figcaption", caption))
        children += [figure, _curve_table(curves)]
    return children


def _curve_legend(curves: Sequence[Curve], teacher: float | None) -> Element:
    items = [element("li", swatch(f"series-{curve.style}"), curve.name) for curve in curves]
    if teacher is not None:
        items.append(element("li", swatch("level"), f"teacher, {percent(teacher, 1)} %"))
    return element("ul", *items, class_="legend")


def _curve_table(curves: Sequence[Curve]) -> Element:
    epochs = sorted({epoch for curve in curves for epoch in curve.points})
    step = -(-len(epochs) // MOST_EPOCHS)
    kept = epochs[::-1][::step][::-1]  # the last epoch is always one of them
    columns = [HtmlColumn("epoch"), *(HtmlColumn(curve.name) for curve in curves)]
    rows = []
    for epoch in kept:
        means = [curve.points[epoch][0] if epoch in curve.points else None for curve in curves]
        rows.append([Cell(str(epoch)), *(Cell(percent(mean)) for mean in means)])
    return details("The curves as a table", table(columns, rows, "Validation mIoU % by epoch, mean over seeds"))


# -- pictures ------------------------------------------------------------------------------------


def _pictures(comparison: Comparison, lines: Sequence[Line]) -> list[Element]:
    best = best_method(lines, _first_trained(lines).group)
    if best is None or not best.pairs or not comparison.plan.report.panels:
        return []
    panels = make_panels(comparison, best)
    if not panels:
        return [element("p", f"On no image do {best.method} and the baseline differ.")]
    words = f"Images of the split by the mIoU of {best.method} less that of the baseline, each image by itself, "
    words += f"mean over {best.pairs} seeds; the predictions shown are those of the first seed."
    children = [element("p", words), _panel_legend(comparison, panels)]
    for heading, group in panels.items():
        children.append(element("h3", heading))
        children += [_panel(panel) for panel in group] or [element("p", "There are none.")]
    return children


def _panel(panel: Panel) -> Element:
    cells = []
    for picture in panel.pictures:
        width, height = picture.size
        image = element("img", src=picture.source, alt=picture.alt, width=width, height=height, loading="lazy")
        words = [element("span", picture.title, class_="title")]
        words += [element("span", picture.note, class_="note")] if picture.note else []
        cells.append(element("div", element("p", *words), image, class_="cell"))
    caption = element("figcaption", panel.name, ": ", element("strong", f"{signed(panel.difference, 1)} points"))
    return element("figure", caption, element("div", *cells, class_="cells"), class_="panel")


def _panel_legend(comparison: Comparison, panels: dict[str, list[Panel]]) -> Element:
    present = sorted({label for group in panels.values() for panel in group for label in panel.labels})
    items = []
    for label in present:
        name = "void" if label == VOID else comparison.dataset.class_names[label]
        colour = VOID_COLOR if label == VOID else comparison.dataset.palette[label]
        square = element("span", class_="square", aria_hidden="true", style="background:rgb({},{},{})".format(*colour))
        items.append(element("li", square, name))
    return element("ul", *items, class_="legend", aria_label="Colours of the classes")


# -- how it was made -----------------------------------------------------------------------------


def _making(comparison: Comparison) -> list[Element]:
    columns = [HtmlColumn("what", False), HtmlColumn("value", False)]
    rows = [[Cell(name), Cell(value)] for name, value in made_with(comparison)]
    runs = "\n".join(result.run.command for result in comparison.results)
    return [
        element("p", f"Protocol of all scores: {protocol(comparison)}."),
        table(columns, rows, "Machine, versions and commit", class_="made-with"),
        element("h3", "Commands"),
        *(_command(title, command) for title, command in commands(comparison)),
        details("The command line of every run", _code(runs)),
        details("The plan (config.toml)", _code(comparison.plan.text)),
    ]


def _command(title: str, command: str) -> Element:
    return element("div", element("p", title, class_="title"), _code(command))


def _code(text: str) -> Element:
    return element("pre", element("code", text), tabindex="0")
