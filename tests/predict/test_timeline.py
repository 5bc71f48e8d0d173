"""What the timeline shows, on synthetic predictions over small videos."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from fe_adapter.data.video import probe, read_frames
from fe_adapter.errors import InputError
from fe_adapter.files import any_script, write_figure
from fe_adapter.predict import timeline
from fe_adapter.predict.result import Prediction
from fe_adapter.predict.seen import FilmStrip
from tests.videos import make_video

StepPatch = pytest.importorskip("matplotlib.patches").StepPatch
Text = pytest.importorskip("matplotlib.text").Text
NAMES = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear", "contempt", "anxiety", "joy", "awe")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("timeline") / "clip.mp4")


def prediction(path, names, num_windows, seconds=1.2):
    step = seconds / (num_windows + 1)
    windows = tuple((i * step, (i + 2) * step) for i in range(num_windows))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_windows, len(names), generator=generator).softmax(1)
    return Prediction(str(path), tuple(names), windows, rows)


def drawn(predicted):
    """The figure and its axes: the curves', the strip's."""
    info = probe(predicted.path)
    rows = predicted.window_probabilities.double().numpy()
    figure = timeline.draw_timeline(Path(predicted.path).name, predicted.class_names, predicted.windows, rows, info)
    return figure, *figure.axes


def steps(axes):
    return [patch.get_data() for patch in axes.patches if isinstance(patch, StepPatch)]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("num_windows", [1, 3])
def test_two_classes_are_one_curve_of_every_window(video, num_windows):
    predicted = prediction(video, ("happy", "sad"), num_windows)
    _, axes, _ = drawn(predicted)
    ((values, edges, _),) = steps(axes)
    np.testing.assert_allclose(values, predicted.window_probabilities[:, 0], rtol=1e-6)
    assert len(edges) == num_windows + 1
    assert (edges[0], edges[-1]) == pytest.approx((0, 1.2))
    happy, sad = legend(axes)
    assert happy.endswith("% happy")
    assert sad.endswith("% (1 − it) sad")
    assert all(line.get_marker() == "None" for line in axes.lines)


def test_neighbours_of_many_windows_share_a_column_and_none_is_lost(video):
    predicted = prediction(video, ("happy", "sad"), 7000, seconds=3600)
    _, axes, _ = drawn(predicted)
    (high, edges, low), (mean, _, _) = sorted(steps(axes), key=lambda step: step[2] is None)
    assert len(mean) == len(edges) - 1 == timeline.MAX_COLUMNS
    first = predicted.window_probabilities[:, 0]
    assert (low.min(), high.max()) == pytest.approx((first.min().item(), first.max().item()))
    per_column = np.diff([*timeline._column_starts(7000), 7000])
    assert (mean * per_column).sum() / 7000 == pytest.approx(first.mean().item(), rel=1e-5)
    assert set(per_column) == {21, 22}
    assert "mean of up to 22 windows" in axes.get_xlabel()
    assert "lowest to highest" in legend(axes)


@pytest.mark.parametrize("num_windows", [1, 10, 7000])
def test_areas_of_seven_classes_add_up_to_one(video, num_windows):
    predicted = prediction(video, NAMES[:7], num_windows)
    _, axes, _ = drawn(predicted)
    areas = steps(axes)
    assert len(areas) == 7
    np.testing.assert_allclose(sum(top - base for top, _, base in areas), 1, rtol=1e-6)
    assert areas[0][0].mean() == pytest.approx(predicted.probabilities.max().item(), rel=0.05)  # the lowest one
    assert {text.split("% ")[1] for text in legend(axes)} == set(NAMES[:7])
    assert legend(axes)[-1].endswith(predicted.label)


@pytest.mark.parametrize(("num_classes", "num_areas"), [(7, 7), (11, 11), (30, 11)])
def test_no_two_areas_have_one_colour(video, num_classes, num_areas):
    _, axes, _ = drawn(prediction(video, [f"class {i}" for i in range(num_classes)], 10))
    colours = {patch.get_facecolor() for patch in axes.patches}
    assert len(colours) == num_areas
    assert ("20 other classes" in legend(axes)[0]) == (num_classes == 30)


def test_a_class_has_its_colour_in_every_video(video):
    def colours(names):
        _, axes, _ = drawn(prediction(video, names, 10))
        handles = axes.get_legend().legend_handles
        return {t.split("% ")[1]: h.get_facecolor() for t, h in zip(legend(axes), handles, strict=True)}

    one, other = colours(NAMES[:7]), colours(NAMES[:7][::-1])
    assert [one[name] for name in NAMES[:7]] == [other[name] for name in NAMES[:7][::-1]]


@pytest.mark.parametrize("size", [(48, 64), (320, 180), (64, 512), (400, 80), (32, 1024)], ids=str)
def test_the_strip_is_as_wide_as_the_time_axis_and_its_frames_have_their_own_shape(tmp_path, size):
    figure, axes, strip = drawn(prediction(make_video(tmp_path / "clip.mp4", size=size), NAMES[:7], 3))
    place, curves = strip.get_window_extent(), axes.get_window_extent()
    assert (place.x0, place.x1) == pytest.approx((curves.x0, curves.x1))
    assert place.y0 > curves.y1
    (image,) = strip.images
    assert image.get_extent()[:2] == list(axes.get_xlim())
    pixels = image.get_array()
    num_frames = 1 + len(strip.collections[0].get_segments())
    assert 1 <= num_frames <= timeline.MAX_FRAMES
    slot = pixels[:, : pixels.shape[1] // num_frames]
    is_frame = (slot[len(slot) * 3 // 4] < 250).all(1)  # a frame is grey there, what is beside it is white
    inches_per_column = place.width / figure.dpi / pixels.shape[1]
    width = is_frame.sum() * inches_per_column
    assert width / (place.height / figure.dpi) == pytest.approx(size[1] / size[0], rel=0.03)
    if num_frames > 1:
        assert (slot[0, np.flatnonzero(is_frame)[0]] > 200).all()  # the white mark at the top left is there
        assert width == pytest.approx(place.width / figure.dpi / num_frames, rel=0.03) or len(slot) > 150


@pytest.mark.parametrize(
    ("seconds", "label", "last"), [(1.2, "time, s", "1.2"), (3600, "time, min:s", "60:00"), (90000, "min:s", "1440:00")]
)
def test_time_is_told_in_minutes_where_it_is_long(video, seconds, label, last):
    figure, axes, _ = drawn(prediction(video, NAMES[:2], 30, seconds))
    figure.draw_without_rendering()
    shown = [text.get_text() for text in axes.get_xticklabels() if text.get_position()[0] <= seconds * 1.001]
    assert label in axes.get_xlabel()
    assert shown[-1] == last
    assert 2 <= len(shown) <= 10


def _box(artist):
    with any_script():
        return artist.get_window_extent()


@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize(
    "name",
    ["x" * 200, "W" * 5000, "悲しみと喜びのあいだ" * 4, "$a$ and $b_2$", "two\nlines", "$", "[/b] :smile:", "\udce9"],
)
def test_whatever_a_name_is_no_text_leaves_the_picture_or_covers_data(tmp_path, name, num_classes):
    names = [f"{name}{i}" for i in range(num_classes)]
    path = make_video(tmp_path / f"{'a $x$ 悲 ' * 20}.mp4")
    figure, axes, strip = drawn(prediction(path, names, 5))
    write_figure(figure, tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").stat().st_size > 0
    with any_script():
        figure.draw_without_rendering()
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and text.axes is not strip:
            box = _box(text)
            assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
            assert 0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
    assert _box(axes.get_legend()).x0 >= axes.get_window_extent().x1


def test_a_dozen_frames_are_decoded_whatever_the_length(tmp_path, monkeypatch):
    wanted = []
    monkeypatch.setattr(timeline, "read_frames", lambda info, which: wanted.extend(which) or read_frames(info, which))
    drawn(
        prediction(
            make_video(tmp_path / "long.mp4", 30, (48, 32), fps=1, times=list(range(0, 600, 20))), NAMES[:2], 300, 600
        )
    )
    assert 1 < len(wanted) <= 12
    assert min(wanted) < 3
    assert max(wanted) > 26  # the middles of their times


def test_a_prediction_writes_its_timeline(video, tmp_path):
    prediction(video, NAMES[:7], 3).save(tmp_path / "clip")
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")


def test_where_no_class_is_probable_enough_there_is_no_answer(video, tmp_path):
    rows = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.1, 0.8, 0.1]])
    windows = ((0.0, 0.4), (0.4, 0.8), (0.8, 1.2))
    sure = Prediction(str(video), NAMES[:3], windows, rows)
    unsure = Prediction(str(video), NAMES[:3], windows, rows, unsure_below=0.6)
    assert [w["label"] for w in sure.as_dict()["windows"]] == ["happiness", "happiness", "sadness"]
    assert [w["label"] for w in unsure.as_dict()["windows"]] == ["happiness", "unsure", "sadness"]
    assert (sure.label, unsure.label) == ("happiness", "unsure")
    unsure.save(tmp_path / "clip")
    with (tmp_path / "clip.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["happiness", "unsure", "sadness"]
    figure = timeline.draw_timeline("clip", NAMES[:3], windows, rows.double().numpy(), probe(video), 0.6)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend[-1] == "33% unsure"
    for value in (0, -1, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"unsure_below=.* is outside \(0, 1\]"):
            Prediction(str(video), NAMES[:3], windows, rows, unsure_below=value)


@pytest.mark.parametrize("num_classes", [2, 7])
@pytest.mark.parametrize("num_windows", [10, 7000])
def test_where_nobody_is_nothing_is_drawn_and_the_strip_is_empty(num_classes, num_windows):
    predicted = prediction("clip.mp4", NAMES[:num_classes], num_windows, seconds=100)
    rows, pictures = predicted.window_probabilities, FilmStrip()
    rows[num_windows * 2 // 5 : num_windows * 4 // 5] = torch.nan
    for second in range(100):
        pictures.add(second, torch.full((3, 60, 60), 90, dtype=torch.uint8))
    figure = timeline.draw_timeline(
        "clip", predicted.class_names, predicted.windows, rows.double().numpy(), None, 0.01, pictures
    )
    axes, strip = figure.axes
    for values, edges, _ in steps(axes):
        middles = (edges[:-1] + edges[1:]) / 2
        is_empty = np.isnan(values)
        assert is_empty[(middles > 45) & (middles < 75)].all()
        assert not is_empty[(middles < 35) | (middles > 85)].any()
    assert legend(axes)[-1] == "40% no face"
    shares = [int(text.partition("%")[0]) for text in legend(axes)[: -1 if num_classes == 7 else 0]]
    assert num_classes == 2 or sum(shares) == pytest.approx(100, abs=4)  # of the time in which somebody is there
    pixels = strip.images[0].get_array()
    columns = (pixels == 255).all((0, 2))
    assert columns[int(0.5 * len(columns)) : int(0.7 * len(columns))].all()
    assert not columns[: len(columns) // 3].any()


def test_a_timeline_of_nobody_says_so():
    predicted = prediction("clip.mp4", NAMES[:7], 3)
    pictures = FilmStrip()
    pictures.add(0.0, torch.zeros(3, 48, 64, dtype=torch.uint8))
    rows = np.full((3, 7), np.nan)
    figure = timeline.draw_timeline("clip", NAMES[:7], predicted.windows, rows, None, 0.6, pictures)
    assert legend(figure.axes[0]) == ["100% no face"]
