"""The look that all figures share (nemo_codert.evaluation.figures)."""

import pytest

from nemo_codert.evaluation.figures import DASHES, PALETTE, POINTS, draw_curves, new_figure, save_figure

pytestmark = pytest.mark.unit


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("panels, shape", [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (4, (2, 2))])
def test_no_more_than_two_panels_are_in_a_row(panels, shape):
    figure, axes = new_figure(5, 4, panels)
    assert len(axes) == panels == len(figure.axes)
    assert tuple(figure.get_size_inches()) == (5 * shape[1], 4 * shape[0])


def test_neighbouring_curves_differ_in_colour_and_in_dash():
    _, (axis,) = new_figure(5, 4)
    draw_curves(axis, {str(number): ([0, 1], [number, number]) for number in range(9)})
    looks = [(line.get_color(), line.get_linestyle()) for line in axis.lines]
    assert len(set(looks)) == 9
    assert all(
        first[0] != second[0] and first[1] != second[1] for first, second in zip(looks, looks[1:], strict=False)
    )
    assert {look[0] for look in looks} == set(PALETTE) and {look[1] for look in looks} == set(DASHES)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [str(number) for number in range(9)]


def test_colours_of_two_curves_stand_out_from_white():
    for colour in PALETTE[:2]:
        assert 1.05 / (luminance(colour) + 0.05) >= 3  # the least contrast of graphics


def test_texts_are_nine_pixels_and_more_on_a_page_of_400_pixels():
    """The page shows a figure of two panels at 704 pixels at least, and scrolls."""
    figure, axes = new_figure(5.2, 4, 2)
    axes[0].set_title("test")
    shown = 704 / (10.4 * 72)  # pixels a point
    texts = [axes[0].title, *axes[0].get_xticklabels(), axes[0].xaxis.label]
    assert min(text.get_fontsize() for text in texts) == POINTS and POINTS * shown > 9


def test_equal_figures_give_equal_files(tmp_path):
    def drawn(name: str) -> bytes:
        figure, (axis,) = new_figure(4, 3)
        draw_curves(axis, {"a": ([0, 1], [1, 0])})
        return save_figure(figure, tmp_path / name).read_bytes()

    assert drawn("first.png") == drawn("second.png")
