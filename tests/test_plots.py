"""The pictures: what they draw, read back from the figure, and that a notebook can show them."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from labkit import plots
from labkit.landscape.memory import MemoryEstimate
from labkit.routes import load_routes
from labkit.training.log import LogRow

PNG = b"\x89PNG\r\n\x1a\n"


def rows(device: str = "cpu") -> list[dict[str, str]]:
    return [
        {
            "step": str(step),
            "train_loss": f"{5 - step / 10:.4f}",
            "val_loss": f"{5.1 - step / 10:.4f}",
            "device": device,
        }
        for step in (0, 10, 20)
    ]


def texts(figure) -> str:
    axes = figure.axes[0]
    inside = [text.get_text() for text in [*axes.texts, *axes.get_yticklabels()]]
    legends = [entry.get_text() for legend in (axes.get_legend(), *figure.legends) if legend for entry in legend.texts]
    return "\n".join([axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *inside, *legends])


def test_a_loss_curve_shows_both_losses_and_names_the_device():
    figure = plots.loss_curve(rows())
    train, held_out = figure.axes[0].lines
    assert list(train.get_ydata()) == [5.0, 4.0, 3.0]
    assert list(held_out.get_xdata()) == [0.0, 10.0, 20.0]
    assert "smoke test on cpu" in texts(figure)
    assert "loss (nats per token)" in texts(figure)


def test_only_a_run_on_cuda_is_not_called_a_smoke_test():
    assert "training run on cuda" in texts(plots.loss_curve(rows("cuda")))
    assert "smoke test on cpu, cuda" in texts(plots.loss_curve([*rows("cuda"), *rows("cpu")]))
    assert "smoke test on mps" in texts(plots.loss_curve(rows("mps")))


def test_a_loss_that_is_no_number_is_left_out():
    bad = [*rows(), {"step": "30", "train_loss": "nan", "val_loss": "", "device": "cpu"}]
    assert len(plots.loss_curve(bad).axes[0].lines[0].get_xdata()) == 3


def test_rows_may_be_the_loops_own_objects():
    from labkit.training.log import LogRow

    made = [LogRow(step, 5.0 - step, 5.1 - step, 0.0, 0.0, 0.0, "", "cpu", 0.0) for step in (0, 1, 2)]
    assert list(plots.loss_curve(made).axes[0].lines[0].get_ydata()) == [5.0, 4.0, 3.0]


def test_two_runs_are_compared_under_their_labels():
    figure = plots.compare_curves({"fast": rows(), "slow": rows()[:2]}, "one dial")
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [len(rows()), 2]
    assert {"fast", "slow", "one dial"} <= set(texts(figure).splitlines())


def test_the_causal_mask_shows_which_positions_are_visible():
    figure = plots.causal_mask([[1, 0], [1, 1]], ["re", "fund"])
    assert figure.axes[0].images[0].get_array().tolist() == [[True, False], [True, True]]
    assert "fund" in texts(figure)


def test_the_failure_table_counts_by_risk():
    summary = {"cases": 7, "by_risk": {"format": {"passed": 4, "failed": 1}, "safety": {"passed": 0, "failed": 2}}}
    figure = plots.failure_table(summary)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [4, 0, 1, 2]
    assert "7 fixed cases by risk" in texts(figure)
    assert {"format", "safety", "passed", "failed"} <= set(texts(figure).splitlines())


MEASURED = {
    "model": "m",
    "route": "r",
    "device": "cpu",
    "claim": "no claim",
    "levels": [
        {"concurrency": 1, "p50_ms": 20, "p95_ms": 29, "tokens_per_second": 50},
        {"concurrency": 8, "p50_ms": 70, "p95_ms": 90, "tokens_per_second": 80},
    ],
    "rows": [{"concurrency": 1, "latency_ms": 10}, {"concurrency": 1, "latency_ms": 30}],
}


def test_the_latency_plot_shows_p50_and_p95_of_each_level_in_milliseconds():
    figure = plots.latency_plot(MEASURED)
    assert list(figure.axes[0].lines[0].get_ydata()) == [10, 30]
    shown = set(texts(figure).splitlines())
    assert {"latency (ms)", "1 at a time: p50 20 ms, p95 29 ms", "8 at a time: p50 70 ms, p95 90 ms"} <= shown
    assert "m on r (cpu): no claim" in shown


def test_the_throughput_plot_shows_what_more_clients_gain_and_pay():
    figure = plots.throughput_plot(MEASURED)
    speed, p95 = (axes.lines[0] for axes in figure.axes)
    assert (list(speed.get_xdata()), list(speed.get_ydata())) == ([1, 8], [50, 80])
    assert list(p95.get_ydata()) == [29, 90]
    assert figure.get_suptitle() == "m on r (cpu): no claim"


def estimate(weights: int | None, cache: int | None) -> MemoryEstimate:
    return MemoryEstimate("maker/model", "bf16", 4096, 1, 4096, 1, weights, cache, 2**28, 2**29, (), ())


def test_memory_bars_are_stacked_in_gib_with_the_card():
    figure = plots.memory_bars([estimate(8 * 2**30, 2**30)], card_gib=24)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [8.0, 1.0, 0.25, 0.5]
    assert [bar.get_x() for bar in figure.axes[0].patches] == [0.0, 8.0, 9.0, 9.25]
    assert "9.8 GiB" in texts(figure)
    assert "activations" in texts(figure)
    assert "card: 24 GiB" in texts(figure)


def test_an_unknown_cache_is_a_lower_bound_and_not_a_zero():
    shown = texts(plots.memory_bars([estimate(8 * 2**30, None)]))
    assert "at least 8.8 GiB, KV cache" in shown
    assert "unknown" in shown


def test_route_minutes_repeats_the_route_files():
    routes = load_routes()
    shown = texts(plots.route_minutes(routes))
    for route in routes:
        assert route.title in shown
        assert f"{sum(route.minutes.values())} min" in shown


@pytest.mark.parametrize("draw", [lambda: plots.loss_curve(rows()), lambda: plots.route_minutes(load_routes())])
def test_a_figure_shows_itself_in_any_front_end(draw):
    assert draw()._repr_png_().startswith(PNG)


def test_drawing_leaves_no_global_figure_behind():
    code = "import sys; from labkit import plots; plots.loss_curve([]); assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_live_loss_outside_jupyter_only_collects(capsys):
    live = plots.LiveLoss()
    for row in rows():
        live.update(row)
    live.close()
    assert len(live.rows) == 3
    assert capsys.readouterr().out == ""


def test_a_live_loss_that_nobody_watches_prints_lines_and_one_picture(monkeypatch, capsys):
    """papermill's and nbval's kernels are told that nobody can type."""
    shown = []
    kernel = SimpleNamespace(_allow_stdin=False)
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr("IPython.display.display", lambda figure, display_id: shown.append(figure))
    live = plots.LiveLoss(every=0)
    for step in (0, 10, 20):
        live.update(LogRow(step, 5.0, 5.1, 1e-3, 0.5, 900.0, "", "cpu", 1.0))
    assert not shown
    live.close()
    assert len(shown) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("step ") and "held-out loss" in line for line in lines)


def test_a_live_loss_draws_into_one_output_and_not_too_often(monkeypatch):
    shown, updated = [], []

    class Handle:
        def update(self, figure):
            updated.append(figure)

    def display(figure, display_id):
        shown.append(figure)
        return Handle()

    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", display)
    ticks = iter(range(100))
    live = plots.LiveLoss(every=10, clock=lambda: float(next(ticks)))
    for _ in range(20):
        live.update(rows()[0])
    live.close()
    assert len(shown) == 1
    assert 1 <= len(updated) <= 4
    assert len(updated[-1].axes[0].lines[0].get_xdata()) == 20
