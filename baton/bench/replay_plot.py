"""What a simulated run looks like, as a picture: TTFT as distribution and over time, and predicted TTFT
against what came."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from baton.planner.simulator import Outcome


def draw(outcome: Outcome, path: Path) -> None:
    """Writes a PNG."""
    done = [r for r in outcome.requests if r.first_token_s is not None]
    arrived = [r.arrival.at_s / 60 for r in done]
    ttft_ms = [1e3 * ((r.first_token_s or 0.0) - r.arrival.at_s) for r in done]
    predicted_ms = [1e3 * (r.predicted_ttft_s or 0.0) for r in done]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    spread, over_time, prediction = figure.subplots(1, 3)
    spread.ecdf(ttft_ms)
    spread.set(xscale="log", xlabel="TTFT, ms", ylabel="share of requests")
    over_time.plot(arrived, ttft_ms, ".", markersize=1.5, alpha=0.4)
    over_time.set(xlabel="arrival, min", ylabel="TTFT, ms", yscale="log")
    prediction.plot(ttft_ms, predicted_ms, ".", markersize=1.5, alpha=0.4)
    prediction.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    prediction.set(xlabel="TTFT, ms", ylabel="predicted, ms")
    figure.savefig(path, dpi=120, format="png")
