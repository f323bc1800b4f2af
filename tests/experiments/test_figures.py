"""Figures hold the data they were given."""

import io

import numpy as np
import pandas as pd
import pytest

from experiments.support import figures


def texts(axes):
    return [text.get_text() for text in axes.texts]


def assert_draws(figure):
    """Layout and all: a figure that fails does so when it is drawn."""
    target = io.BytesIO()
    figure.savefig(target, format="png")
    assert target.getvalue().startswith(b"\x89PNG")


def test_heatmap_prints_every_number():
    values = np.array([[0.5, 0.75, 1.0], [0.25, 0.625, 0.875]])
    figure = figures.heatmap(values, ["a", "b"], ["x", "y", "z"], "Title", 0.0, 1.0)
    axes = figure.axes[0]
    assert texts(axes) == ["0.500", "0.750", "1.000", "0.250", "0.625", "0.875"]
    np.testing.assert_array_equal(axes.images[0].get_array(), values)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["x", "y", "z"]
    assert axes.get_title() == "Title"
    assert_draws(figure)


def curve_table():
    return pd.DataFrame(
        {
            "depth": [2, 1, 1, 2],
            "value": [0.9, 0.8, 0.7, 0.6],
            "law": ["a", "a", "b", "b"],
            "low": [0.8, 0.7, 0.6, 0.5],
            "high": [1.0, 0.9, 0.8, 0.7],
        }
    )


def test_curves_draw_a_sorted_line_a_group_with_its_band():
    figure = figures.curves(
        curve_table(), "depth", "value", "law", "low", "high", x_label="layers", y_label="alignment"
    )
    axes = figure.axes[0]
    found = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert found == {"a": [[1, 0.8], [2, 0.9]], "b": [[1, 0.7], [2, 0.6]]}
    assert len(axes.collections) == 2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("layers", "alignment")
    assert axes.get_xscale() == "linear"
    # There is no layer one and a half.
    assert all(tick % 1 == 0 for tick in axes.get_xticks())
    assert_draws(figure)


def test_curves_without_bands_on_a_logarithmic_axis():
    figure = figures.curves(
        curve_table(), "depth", "value", "law", x_label="x", y_label="y", log_x=True
    )
    assert not figure.axes[0].collections
    assert figure.axes[0].get_xscale() == "log"


@pytest.mark.parametrize("count", [1, 3])
def test_matrices_share_a_scale_and_leave_no_empty_axes(count):
    matrices = {f"m{i}": np.full((2, 2), float(i)) + np.eye(2) for i in range(count)}
    figure = figures.matrix_grid(matrices, ["x", "y"], "alignment")
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == list(matrices)
    for axes, matrix in zip(shown, matrices.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), matrix)
        assert axes.images[0].get_clim() == (0.0, float(count))
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("tested on", "trained on")
    assert_draws(figure)


def test_intervals_and_a_single_run_without_one():
    table = pd.DataFrame(
        {
            "label": ["one", "two"],
            "mean": [0.5, 0.7],
            "low": [0.4, None],
            "high": [0.6, None],
        }
    )
    figure = figures.intervals(table, "spread")
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0.5, 0.7])
    segments = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert segments == [[0.4, 0.6], [0.7, 0.7]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert axes.get_xlabel() == "spread"
    assert_draws(figure)


def test_error_strips_show_worst_and_median_beside_the_limit():
    errors = pd.DataFrame(
        {
            "construction": ["a"] * 3 + ["b"] * 3,
            "dtype": ["float64"] * 6,
            "rel_err": [0.0, 1e-15, 1e-12, 2e-15, 3e-15, 4e-15],
        }
    )
    figure = figures.error_strips(errors, {"float64": 1e-10})
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    drawn = [line.get_xdata() for line in axes.lines]
    assert any(np.allclose(x, [1e-18, 1e-12]) for x in drawn if len(x) == 2)
    assert any(len(x) == 1 and np.isclose(x[0], 3e-15, rtol=1e-6, atol=0) for x in drawn)
    assert any(np.allclose(x, 1e-10, atol=0) for x in drawn)
    assert axes.get_xscale() == "log"
    assert_draws(figure)


def test_bound_scatter_leaves_out_what_has_no_place_on_its_axes():
    gram = pd.DataFrame({"error": [0.1, 0.0, 0.2], "bound": [0.3, 0.3, 0.4]})
    figure = figures.bound_scatter(gram)
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0.3, 0.1], [0.4, 0.2]])
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[0.3, 0.3], [0.4, 0.4]])
    assert_draws(figure)
    assert_draws(figures.bound_scatter(gram.iloc[1:2]))
