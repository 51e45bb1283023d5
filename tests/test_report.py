"""report.html: sound structure, nothing from outside, text escaped, true pictures; and a look by a real browser."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from basics.checkpoint import load_file, save_atomic
from comparison.charts import curves_svg, gains_svg, make_curve, nice_ticks
from comparison.markup import element, write
from comparison.panels import extremes, image_differences, make_panels
from comparison.plan import Group, Plan
from comparison.report import to_html
from comparison.statistics import Spread, summarize
from dataset import build_dataset
from deploy.segmenter import Segmenter
from segdata.drawing import colorize
from tests.comparisons import invent, read_plan, write_plan

METHODS = """
[methods.baseline]
[methods.kl]
alpha = 1
[methods.worse]
alpha = 2
"""
MIOUS = {"baseline": [0.50, 0.54, 0.52], "kl": [0.53, 0.58, 0.555], "worse": [0.45, 0.48, 0.465]}
NASTY = "<b>disk</b> & </script><script>boom()</script>"


class Tree(HTMLParser):
    """Every element's tag, attributes and text, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        item = (tag, dict(attrs), [])
        self.found.append(item)
        if tag not in ("meta", "img"):  # these have no end
            self.open.append(item)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for item in self.open:
            item[2].append(data)

    def all(self, tag: str) -> list[tuple[dict, str]]:
        return [(attrs, "".join(text)) for name, attrs, text in self.found if name == tag]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, demo_data, demo_checkpoint):
    """Three seeds, three methods, invented scores; the networks behind the pictures are untrained ones."""
    folder = tmp_path_factory.mktemp("report")
    dataset = build_dataset("demo", demo_data, "val")
    names = list(dataset.class_names)
    dataset.class_names = [names[0], NASTY, *names[2:]]
    save_atomic(load_file(demo_checkpoint("fastlitessnet")) | {"class_names": dataset.class_names}, folder / "t.pth")
    teacher = f'teacher = "fastlitessnet"\nteacher_weights = "{folder / "t.pth"}"'
    plan = read_plan(
        write_plan(folder, demo_data, teacher, methods=METHODS + "[report]\npanels = 2\n", seeds=[0, 1, 2]), folder
    )
    for run in plan.runs:
        run.folder.mkdir(parents=True)
        shutil.copy(demo_checkpoint("compact", seed=int(run.method == "kl")), run.folder / "best.pth")
    return invent(plan, dataset, MIOUS)


@pytest.fixture(scope="module")
def report(comparison) -> str:
    return to_html(comparison, summarize(comparison))


@pytest.fixture(scope="module")
def tree(report) -> Tree:
    return Tree(report)


def test_pictures_are_drawn_in_the_tiles_of_the_scores(comparison, monkeypatch):
    """But not those of a network with a working size, at which nothing is cut."""
    asked = []

    def mask(self, image, tile=0):
        asked.append(tile)
        return torch.zeros(image.shape[1:], dtype=torch.uint8)

    monkeypatch.setattr(Segmenter, "mask", mask)
    best = next(line for line in summarize(comparison) if line.kind == "method")
    monkeypatch.setattr(Plan, "args", replace(comparison.plan.args, eval_tile=64))
    make_panels(comparison, best)
    assert asked and set(asked) == {64}
    monkeypatch.setattr(Segmenter, "input_size", 48)
    asked.clear()
    make_panels(comparison, best)
    assert asked and set(asked) == {0}


# -- structure -----------------------------------------------------------------------------------


def test_it_is_one_file_that_asks_the_network_for_nothing(report, tree):
    assert len(report.encode()) < 3_000_000
    assert report.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//[a-z]|@import|fetch\(|url\((?!#)", re.sub(r"base64,[\w+/=]+", "", report))
    for _, attrs, _ in tree.found:
        assert attrs.get("src", "data:image/").startswith("data:image/")
        assert attrs.get("href", "#").startswith("#")
    assert not tree.all("link") and not tree.all("iframe")
    policy = next(attrs["content"] for attrs, _ in tree.all("meta") if attrs.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_ids_are_unique_and_links_lead_somewhere(tree):
    ids = [attrs["id"] for _, attrs, _ in tree.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs, _ in tree.all("a")} <= set(ids)
    assert {attrs["aria-labelledby"] for _, attrs, _ in tree.found if "aria-labelledby" in attrs} <= set(ids)
    first = next(attrs for tag, attrs, _ in tree.found if tag in ("a", "button"))
    assert first["class"] == "skip" and first["href"] == "#main"


def test_chosen_classes_have_columns_and_a_verdict_of_their_own(tmp_path, demo_data):
    options = '[report]\npanels = 0\nclasses = ["background", "disk"]\n'
    plan = read_plan(write_plan(tmp_path, demo_data, methods=METHODS + options, seeds=[0, 1, 2]), tmp_path)
    comparison = invent(plan, build_dataset("demo", demo_data, "val"), MIOUS)
    tree = Tree(to_html(comparison, summarize(comparison)))
    headings = [text for _, text in tree.all("th")]
    assert headings.index("mIoU-2 helps?") == headings.index("mIoU-2 %") + 2 == headings.index("helps?") + 3
    # Two methods, each twice: +3 to +4 points help, -5 to -6 harm, and so does the half of each, over two classes.
    verdicts = [text for attrs, text in tree.all("span") if (attrs.get("class") or "").startswith("verdict")]
    assert verdicts == ["yes", "yes", "no", "no"]


def test_headings_descend_one_step_at_a_time(tree):
    levels = [int(tag[1]) for tag, _, _ in tree.found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_everything_has_a_name_for_those_who_cannot_see_it(tree):
    assert tree.all("html")[0][0]["lang"] == "en"
    images = tree.all("img")
    assert len(images) == 2 * 5  # two gains; in the invented scores nothing is lost
    for attrs, _ in images:
        assert attrs["alt"].strip() and int(attrs["width"]) and int(attrs["height"])
    for attrs, _ in tree.all("svg"):
        assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])
    assert len(tree.all("caption")) == len(tree.all("table")) > 3
    assert all(text.strip() for _, text in [*tree.all("button"), *tree.all("a"), *tree.all("summary"), *tree.all("th")])
    assert all(attrs.get("scope") in ("col", "row") for attrs, _ in tree.all("th"))


def test_the_table_says_what_the_numbers_say(tree):
    """Rows as text: kl gains 3, 4 and 3.5 points, worse loses 5, 6 and 5.5."""
    rows = [re.sub(r"\s+", " ", text) for _, text in tree.all("tr")]
    kl = next(row for row in rows if row.startswith("kl"))
    worse = next(row for row in rows if row.startswith("worse"))
    assert "55.50 ± 2.50" in kl and "+3.50 (+2.26 to +4.74)" in kl and "yes" in kl
    assert "-5.50 (-6.74 to -4.26)" in worse and "no" in worse
    text = " ".join(text for _, text in tree.all("body"))
    for piece in (
        "native resolution",
        "abc123",
        "a <machine>",
        "python compare.py",
        "Helps: kl; not shown to help: worse",
    ):
        assert piece in text


def test_text_is_escaped(report, tree):
    assert NASTY not in report
    assert NASTY in " ".join(text for _, text in tree.all("th"))
    assert not tree.all("b")
    assert len(tree.all("script")) == 1
    assert (
        write(element("p", "a<b", title='"x" & y')) == '<!DOCTYPE html>\n<p title="&quot;x&quot; &amp; y">a&lt;b</p>\n'
    )


# -- pictures ------------------------------------------------------------------------------------


def test_extremes_are_those_of_the_differences():
    differences = {"a": 0.1, "b": -0.2, "c": 0.0, "d": 0.3, "e": -0.1, "f": 0.2}
    assert extremes(differences, 2) == (["d", "f"], ["b", "e"])
    assert extremes({"a": 0.1}, 2) == (["a"], [])


def test_differences_are_means_over_the_seeds_that_both_have(comparison):
    """Image number i: kl's mIoU + i points, less the baseline's + 2; kl gains 3 and 4 points."""
    found = image_differences(comparison.of("kl", Group("compact")), comparison.of("baseline", Group("compact")))
    expected = {name: 0.035 + 0.01 * number - 0.02 for number, name in enumerate(comparison.dataset.ids)}
    assert found == pytest.approx(expected)
    only = image_differences(comparison.of("kl", Group("compact"))[1:2], comparison.of("baseline", Group("compact")))
    assert only[comparison.dataset.ids[0]] == pytest.approx(0.04 - 0.02)


def test_pictures_show_the_images_with_the_largest_gains(comparison, tree):
    ids = comparison.dataset.ids
    captions = [text for _, text in tree.all("figcaption")]
    assert f"{ids[-1]}: +6.5 points" in captions[2] and f"{ids[-2]}: +5.5 points" in captions[3]
    assert "There are none." in " ".join(text for _, text in tree.all("main"))
    titles = [text for attrs, text in tree.all("span") if attrs.get("class") == "title"]
    assert titles[:5] == ["Input", "Truth", "Teacher", "Baseline", "Distilled (kl)"]


def test_the_mask_in_the_file_is_the_data_sets(comparison, tree):
    """The demo's pictures are smaller than the report's limit, so every pixel is there, in the class's colour."""
    dataset = comparison.dataset
    sample = dataset[len(dataset) - 1]
    source = next(attrs["src"] for attrs, _ in tree.all("img") if attrs["alt"].startswith("Truth"))
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    expected = colorize(sample["mask"].numpy(), dataset.palette)
    assert np.array_equal(np.asarray(picture.convert("RGB")), expected)


# -- charts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (31.4, 52.6), (0.0, 0.0), (55.5, 55.5), (99.9, 100.0)])
def test_ticks_are_round_and_enclose_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9 and 2 <= len(ticks) <= 8
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_an_epoch_whose_score_is_no_number_is_not_in_the_curve(comparison):
    """Earlier versions wrote nan."""
    results = comparison.of("kl", Group("compact"))
    before = make_curve("kl", 1, results)
    lost = max(before.points)
    changed = [
        replace(
            result,
            metrics=[row | ({"val_miou": math.nan} if row["epoch"] == lost else {}) for row in result.metrics],
        )
        for result in results
    ]
    assert make_curve("kl", 1, changed).points == {e: p for e, p in before.points.items() if e != lost}
    assert all(result.best_epoch != lost or len(before.points) == 1 for result in changed)


def test_a_curve_is_the_mean_at_the_epochs_that_all_seeds_scored(comparison):
    curve = make_curve("kl", 1, comparison.of("kl", Group("compact")))
    assert list(curve.points) == [1, 3]
    assert curve.points[3] == pytest.approx((0.555, 0.53, 0.58))
    assert make_curve("none", 1, []).points == {}


def test_the_last_point_of_the_line_is_highest_on_the_page(comparison):
    curve = make_curve("kl", 1, comparison.of("kl", Group("compact")))
    svg = curves_svg("x", [curve], 0.8, "label")
    points = svg.find(".//polyline").get("points").split()
    (x1, y1), (x3, y3) = ([float(part) for part in point.split(",")] for point in points)
    assert x1 < x3 and y3 < y1  # to the right, and up
    assert float(svg.find(".//line[@class='level']").get("y1")) < y3


def test_the_chart_of_gains_shows_intervals_about_zero(tree):
    """Positions on the page, read off the ticks: a mean and both ends of its interval."""
    label = next(attrs["aria-label"] for attrs, _ in tree.all("svg") if "Difference" in attrs.get("aria-label", ""))
    assert "kl +3.50 (+2.26 to +4.74); worse -5.50 (-6.74 to -4.26)" in label
    svg = gains_svg(
        [("kl", Spread.of([0.03, 0.04, 0.035])), ("a name that is much too long", Spread(-0.055, None))], ""
    )
    texts = [(text.text, float(text.get("x"))) for text in svg.iter("text") if text.get("class") == "tick below"]
    (first, x_first), (last, x_last) = texts[0], texts[-1]

    def points(x):
        return float(first) + (float(last) - float(first)) * (float(x) - x_first) / (x_last - x_first)

    kl, other = svg.findall("line[@class='whisker series-1']")
    assert (points(kl.get("x1")), points(kl.get("x2"))) == pytest.approx((2.258, 4.742), abs=0.02)
    assert points(other.get("x1")) == points(other.get("x2")) == pytest.approx(-5.5, abs=0.02)  # a single pair
    assert [points(dot.get("cx")) for dot in svg.findall("circle")] == pytest.approx([3.5, -5.5], abs=0.02)
    assert points(svg.find("line[@class='level']").get("x1")) == pytest.approx(0, abs=0.02)
    assert [text.text for text in svg.iter("text") if text.get("class") == "tick left"][1].endswith("…")


@pytest.mark.parametrize("methods", ["", "[methods.kl]\nalpha = 1\n"])
def test_without_teacher_or_method_it_is_a_report_still(tmp_path, demo_data, methods):
    plan = read_plan(
        write_plan(tmp_path, demo_data, methods="[methods.baseline]\n" + methods, seeds=[0, 1, 2]), tmp_path
    )
    comparison = invent(plan, build_dataset("demo", demo_data, "val"), {"baseline": [0.5]}, teacher=None)
    tree = Tree(to_html(comparison, summarize(comparison)))
    assert "Pictures" not in [text for _, text in tree.all("h2")]
    assert "50.00 ± —" in " ".join(text for _, text in tree.all("td"))


@pytest.mark.parametrize("method", ["baseline", "kl"])
def test_the_figures_are_of_a_student_that_has_runs(tmp_path, demo_data, method):
    """Two students, of which only the second has runs, perhaps not even of the baseline."""
    path = write_plan(tmp_path, demo_data, methods="[methods.baseline]\n[methods.kl]\nalpha = 1\n")
    path.write_text(path.read_text().replace('["compact"]', '["standard", "compact"]'))
    comparison = invent(read_plan(path, tmp_path), build_dataset("demo", demo_data, "val"), {method: [0.52, 0.54]})
    comparison = replace(comparison, results=[r for r in comparison.results if r.run.group.student == "compact"])
    tree = Tree(to_html(comparison, summarize(comparison)))
    assert f"mIoU % of {method}, compact" in [text for _, text in tree.all("dt")]


# -- a browser -----------------------------------------------------------------------------------

PROBE = """
<script>
const failures = [];
addEventListener("error", (event) => failures.push(event.message));
addEventListener("load", () => {
  const table = document.getElementById("results");
  const head = Array.from(table.tHead.rows[0].cells);
  const heading = (title) => head.find((cell) => cell.textContent.trim() === title);
  const names = () => Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent);
  const press = (title) => { heading(title).querySelector("button").click(); return names(); };
  const seen = { before: names() };
  seen.down = press("mIoU %");
  seen.sort = heading("mIoU %").getAttribute("aria-sort");
  seen.said = document.getElementById("announce").textContent;
  seen.up = press("mIoU %");
  seen.gaps = press("difference to baseline");
  seen.gapsUp = press("difference to baseline");
  seen.sorted = head.filter((cell) => cell.hasAttribute("aria-sort")).length;
  seen.text = press("method");
  const button = document.getElementById("theme");
  const colour = () => getComputedStyle(document.body).backgroundColor;
  seen.system = [button.textContent, colour()];
  button.click();
  seen.light = [button.textContent, colour()];
  button.click();
  seen.dark = [button.textContent, colour()];
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.images = Array.from(document.images).every((image) => image.loading === "lazy" || image.naturalWidth > 0);
  seen.failures = failures;
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
</script>
"""


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium on PATH")
def test_in_a_browser_tables_sort_and_the_theme_changes(report, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(report.replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
    done = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,800", "--virtual-time-budget=5000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["failures"] == []
    assert seen["before"] == ["teacher", "baseline", "kl", "worse"]
    assert (seen["down"], seen["sort"]) == (["teacher", "kl", "baseline", "worse"], "descending")
    assert seen["said"] == "Sorted by mIoU %, descending."
    assert seen["up"] == seen["down"][::-1]
    assert seen["gaps"][:2] == ["kl", "worse"] and seen["gapsUp"][:2] == ["worse", "kl"]  # gaps stay at the end
    assert seen["sorted"] == 1
    assert seen["text"] == ["baseline", "kl", "teacher", "worse"]
    assert [seen[theme][0] for theme in ("system", "light", "dark")] == [
        "Theme: system", "Theme: light", "Theme: dark"
    ]  # fmt: skip
    assert seen["light"][1] == "rgb(255, 255, 255)" != seen["dark"][1]
    assert seen["overflow"] <= 0, "the page scrolls sideways on a narrow screen"


def test_the_style_sheet_has_the_same_colours_for_both_ways_to_dark():
    css = (Path(__file__).parent.parent / "comparison" / "report.css").read_text()
    blocks = [set(re.findall(r"--\w+: #\w+", block)) for block in re.findall(r"color-scheme: dark;([^}]*)}", css)]
    assert len(blocks) == 2 and blocks[0] == blocks[1] and len(blocks[0]) > 10
