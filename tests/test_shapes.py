"""Shapes to pixels: by hand, against matplotlib's point-in-polygon test, and against COCO's own code."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image

from datalayouts.shapes import Bitmap, Circle, Polygons, Region, Runs, decode_counts, fill_polygon, paint

HEIGHT, WIDTH = 24, 31


def whole(region: Region, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """The region's pixels in a picture of this size."""
    mask = np.zeros((height, width), bool)
    rows, columns = region.inside.shape
    mask[region.top : region.top + rows, region.left : region.left + columns] = region.inside
    return mask


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def polygon(*points: tuple[float, float]) -> Polygons:
    return Polygons([np.array(points, float)])


# -- polygons ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corners", "rows", "columns"),
    [
        ((2, 3, 5, 7), (3, 7), (2, 5)),  # pixels 2, 3, 4 across
        ((0, 0, WIDTH, HEIGHT), (0, HEIGHT), (0, WIDTH)),
        ((2.5, 3.5, 4.5, 5.5), (3, 5), (2, 4)),  # a centre on an upper or left edge is inside, on the others not
        ((2.51, 3.51, 4.51, 5.51), (4, 6), (3, 5)),
        ((2.4, 3.4, 4.4, 5.4), (3, 5), (2, 4)),
        ((-9, -9, 2, 2), (0, 2), (0, 2)),
        ((29, 20, 99, 99), (20, HEIGHT), (29, WIDTH)),
        ((2.6, 3.6, 3.4, 4.4), (0, 0), (0, 0)),  # no centre within
        ((40, 40, 50, 50), (0, 0), (0, 0)),
    ],
)
def test_a_box_is_filled_by_pixel_centres(corners, rows, columns):
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[slice(*rows), slice(*columns)] = True
    for points in (box(*corners), box(*corners)[::-1]):
        np.testing.assert_array_equal(whole(Polygons([points]).draw(HEIGHT, WIDTH)), expected)
        np.testing.assert_array_equal(fill_polygon(points, HEIGHT, WIDTH), expected)


def test_a_triangle_by_hand():
    expected = np.array(
        [
            [1, 1, 1, 0],  # centres (0.5, 0.5), (1.5, 0.5), (2.5, 0.5): x + y < 4; (3.5, 0.5) lies on the right edge
            [1, 1, 0, 0],
            [1, 0, 0, 0],
            [0, 0, 0, 0],
        ],
        bool,
    )
    np.testing.assert_array_equal(whole(polygon((0, 0), (4, 0), (0, 4)).draw(4, 4), 4, 4), expected)


def test_neighbours_share_no_pixel_and_leave_none_out():
    rng = np.random.default_rng(0)
    middle = rng.uniform(5, 20, 2)
    corners = np.array([(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)], float)
    covered = sum(
        whole(Polygons([np.array([corners[k], corners[(k + 1) % 4], middle])]).draw(HEIGHT, WIDTH)).astype(int)
        for k in range(4)
    )
    np.testing.assert_array_equal(covered, np.ones((HEIGHT, WIDTH)))


points = st.lists(
    st.tuples(st.floats(-10, 45, allow_nan=False), st.floats(-10, 35, allow_nan=False)), min_size=3, max_size=9
)


@settings(max_examples=150)
@given(corners=points)
def test_any_polygon_is_what_matplotlib_says(corners):
    """Even where it crosses itself or leaves the picture; centres within a hair of an edge may go either way."""
    vertices = np.array(corners)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], 1)
    expected = Outline([*vertices, vertices[0]], closed=True).contains_points(centres).reshape(HEIGHT, WIDTH)
    drawn = whole(Polygons([vertices]).draw(HEIGHT, WIDTH))
    clear = edge_distance(vertices, centres).reshape(HEIGHT, WIDTH) > 1e-6
    np.testing.assert_array_equal(drawn[clear], expected[clear])


def edge_distance(vertices: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Distance of each of ``centres`` (N, 2) to the nearest edge of a closed polygon, (N,)."""
    start, along = vertices, np.roll(vertices, -1, axis=0) - vertices
    offset = centres[:, None] - start
    share = (offset * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12)
    nearest = start + share.clip(0, 1)[..., None] * along
    return np.hypot(*np.moveaxis(centres[:, None] - nearest, -1, 0)).min(1)


def simple_polygon(rng: np.random.Generator) -> np.ndarray:
    """An outline of 3 to 40 corners within the picture."""
    corners = int(rng.integers(3, 40))
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(2, 14, corners)
    x, y = rng.uniform(3, 28), rng.uniform(3, 20)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1).clip(0, (WIDTH, HEIGHT))


def test_polygons_are_cocos_but_for_a_border_of_one_pixel():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centres = np.stack([x.ravel(), y.ravel()], 1)
    compared = differing = 0
    for _ in range(100):
        vertices = simple_polygon(rng)
        theirs = coco.decode(coco.frPyObjects([vertices.ravel().tolist()], HEIGHT, WIDTH))[..., 0].astype(bool)
        ours = whole(Polygons([vertices]).draw(HEIGHT, WIDTH))
        near = edge_distance(vertices, centres).reshape(HEIGHT, WIDTH)
        assert near[ours != theirs].max(initial=0) < 1.01
        compared += theirs.sum()
        differing += (ours != theirs).sum()
    assert differing < 0.1 * compared


def test_the_parts_of_an_object_are_united():
    """Not cut out of each other: COCO's polygons know no holes."""
    drawn = whole(Polygons([box(2, 2, 12, 12), box(5, 5, 8, 8), box(20, 3, 25, 9)]).draw(HEIGHT, WIDTH))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[2:12, 2:12] = expected[3:9, 20:25] = True
    np.testing.assert_array_equal(drawn, expected)


# -- other shapes ------------------------------------------------------------------------------------


def test_a_circle_holds_the_centres_within_its_radius():
    drawn = whole(Circle(10.2, 8.7, 6.3).draw(HEIGHT, WIDTH))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            assert drawn[row, column] == (np.hypot(column + 0.5 - 10.2, row + 0.5 - 8.7) < 6.3)
    assert whole(Circle(0, 0, 2).draw(HEIGHT, WIDTH)).sum() == 3  # (0.5, 0.5), (1.5, 0.5), (0.5, 1.5)


def test_run_lengths_go_down_the_columns():
    drawn = whole(Runs([2, 3, 4, 1, 2], height=4, width=3).draw(4, 3), 4, 3)
    np.testing.assert_array_equal(drawn, [[0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]])
    assert whole(Runs([0, 12], height=4, width=3).draw(4, 3), 4, 3).all()
    assert not Runs([12], height=4, width=3).draw(4, 3).area


def test_compressed_run_lengths_are_cocos():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(3)
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(1, 400, 2))
        mask = np.kron(rng.random((8, 8)) < rng.uniform(0, 1), np.ones((height // 8 + 1, width // 8 + 1)))
        mask = (mask[:height, :width] + (rng.random((height, width)) < 0.01)).astype(np.uint8) % 2
        packed = coco.encode(np.asfortranarray(mask))["counts"].decode()
        np.testing.assert_array_equal(whole(Runs(packed, height, width).draw(height, width), height, width), mask)


def test_a_compressed_string_by_hand():
    # 5 = 00101 -> '5'; 40 = 01000 + 2 * 32 more -> 01000|1, 00001 -> 'X', '1'; 3 -> '3'; then 2 - 40 = -38
    assert decode_counts("5") == [5]
    assert decode_counts("5X1") == [5, 40]
    assert decode_counts("5X13") == [5, 40, 3]
    assert decode_counts("5X13jN") == [5, 40, 3, 2]


@pytest.mark.parametrize(
    "runs",
    [
        Runs([5, 5], 4, 3),
        Runs([5, 8], 4, 3),
        Runs([13, -1], 4, 3),
        Runs([2**70], 4, 3),
        Runs([2**62, 2**62, 2**62, 2**62, 12], 4, 3),
        Runs([], 4, 3),
        Runs([12], 3, 4),
        Runs("X", 4, 3),
        Runs("é", 4, 3),
        Runs("o" * 40, 4, 3),
        Runs("~~", 4, 3),
    ],
)
def test_wrong_run_lengths_are_refused(runs):
    with pytest.raises(ValueError, match="run lengths"):
        runs.draw(4, 3)


@given(text=st.text(alphabet=[chr(48 + n) for n in range(64)], max_size=30))
def test_any_string_is_run_lengths_or_refused(text):
    try:
        region = Runs(text, 5, 7).draw(5, 7)
    except ValueError:
        return
    assert whole(region, 5, 7).shape == (5, 7)


def png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["bool", "grey"])
@pytest.mark.parametrize("place", [(3, 2), (-2, -1), (28, 21), (40, 2)])
def test_a_bitmap_lies_where_it_says_and_is_cut_off_at_the_edge(place, mode):
    x, y = place
    pattern = np.random.default_rng(4).random((5, 6)) < 0.5
    pixels = pattern if mode == "bool" else (pattern * 255).astype(np.uint8)
    drawn = whole(Bitmap(png(pixels), x, y, 6, 5).draw(HEIGHT, WIDTH))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            within = 0 <= row - y < 5 and 0 <= column - x < 6
            assert drawn[row, column] == (within and pattern[row - y, column - x])


def test_a_bitmap_that_is_none_is_refused():
    with pytest.raises(ValueError, match="size"):
        Bitmap(png(np.ones((5, 6), bool)), 0, 0, 5, 6).draw(HEIGHT, WIDTH)
    for damaged in (b"", b"what", png(np.ones((50, 60), bool))[:60]):
        with pytest.raises(ValueError):
            Bitmap(damaged, 0, 0, 60, 50).draw(HEIGHT, WIDTH)


# -- overlap -----------------------------------------------------------------------------------------


def test_overlap_by_order_and_by_area():
    large, small = Polygons([box(0, 0, 8, 8)]), Polygons([box(2, 2, 4, 4)])
    regions = [(7, small.draw(10, 10)), (9, large.draw(10, 10))]
    expected = np.full((10, 10), 3, np.uint8)
    expected[:8, :8] = 9
    np.testing.assert_array_equal(paint(regions, 10, 10, 3, smaller_on_top=False), expected)
    expected[2:4, 2:4] = 7
    for order in (regions, regions[::-1]):
        np.testing.assert_array_equal(paint(order, 10, 10, 3, smaller_on_top=True), expected)


def test_of_equal_areas_the_later_lies_on_top():
    same = Polygons([box(1, 1, 3, 3)]).draw(5, 5)
    assert paint([(1, same), (2, same)], 5, 5, 0, smaller_on_top=True)[1, 1] == 2
