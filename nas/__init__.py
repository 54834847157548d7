"""Architecture search and ablation for text-to-image diffusion models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

__version__ = "0.1.0"


def load(*runs: str | Path) -> pd.DataFrame:
    """Runs as one pandas frame, a row per trial: `nas.load("runs/quickstart")`. Several get a column `run` (0, 1, ...).

    A run is its directory, or a study's folder in runs/ (its latest run). The columns:

        trial, key           number, and the architecture's hash: equal networks have equal keys
        state, reason        complete, stopped, over_budget, duplicate, failed or running, and why
        seed, repeat         of this training; `repeat` counts trainings of one architecture (of an ablation: of one cell)
        duplicate_of, init   the earlier trial of the same network; what training started from
        rung, images_seen    how far it was trained
        on_front             whether no other architecture is better in every objective (means over repeats)
        fid_..., clip_score, ...   the metrics at the last rung; `.attrs["conditions"]` says what each was measured with
        params, macs, macs_without_attention, macs_padding_free, activation_bytes   of the network at deploy scale
        proxy_params, ...    the same of the small network that was trained
        load_s, train_s, sample_s, score_s, save_s, total_s   seconds by phase, summed over rungs; wall_s from start to end
        images_per_s, peak_memory_mib   of training
        arch.<axis>          the choices (a list as JSON text); of an ablation `cell` and factor.<name> instead

    A cell without a number is empty. `.attrs["objectives"]` maps the study's objectives to "minimise" or "maximise".

    InputError, one line: no run there, a run of a newer version, no trial trained to the end, or runs whose metrics were
    measured under different conditions (it names the condition).
    """
    from nas import results

    return results.load_finished(runs)
