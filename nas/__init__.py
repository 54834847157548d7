"""Architecture search and ablation for text-to-image diffusion models.

    run = nas.run("studies/quickstart")        # or a nas.Study, which is built in code
    run.front()                                # pandas frames: also run.results(), run.effects()
    nas.extend(run, trials=40)                 # go on; nas.resume(run) after an interruption
    nas.export(run, pick="knee")               # the winner as files

`help` of each function says what it takes, `help(nas.Study)` every key of a study. `nas --help` is the same from a shell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nas.api import Run, export, extend, resume, run
from nas.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from nas.settings.study_in_code import Study

__version__ = "0.1.0"
__all__ = ["InputError", "Run", "Study", "export", "extend", "load", "resume", "run"]


def __getattr__(name: str) -> Any:
    """`nas.Study` is imported when it is asked for: it takes as long as all else together."""
    if name != "Study":
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    from nas.settings.study_in_code import Study

    return Study


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def load(*runs: str | Path) -> pd.DataFrame:
    """Runs as one pandas frame, a row per trial: `nas.load("runs/quickstart")`. Several get a column `run` (0, 1, ...).

    A run is its directory, a study's folder in runs/ (its latest run), or a folder with a committed study, such as
    studies/quickstart: study.yaml, results.csv and conditions.json. The columns:

        trial, key           number, and the architecture's hash: equal networks have equal keys
        state, reason        complete, stopped, over_budget, duplicate, failed or running, and why
        seed, repeat         of this training; `repeat` counts trainings of one architecture (of an ablation: of one cell)
        duplicate_of, init   the earlier trial of the same network; what training started from
        rung, images_seen    how far it was trained
        on_front             whether no other architecture is better in every objective (means over repeats)
        fid, fid_...         Frechet distance of image features to the dataset's, lower is better; `fid` is Inception's, any
                             other extractor is part of the name
        kid_..., mind_...    kernel and sliced Wasserstein distance of the same features, for few pictures
        precision_..., recall_...   share of pictures among the real ones' neighbours, and of real ones among theirs
        density_..., coverage_...   the same with what counts more than once, and the share of real pictures that were met
        vendi_...            how many different pictures there are, in effect
        memorised_...        share of pictures nearer to a training picture than that one is to the others
        prompt_accuracy      share of pictures of dataset scenes that show all that their captions say, by rule, of captions
                             whose combinations training showed; unseen_prompt_accuracy of the others; background_accuracy,
                             count_accuracy, colour_accuracy, size_accuracy, shape_accuracy, relation_accuracy of one thing each
        clip_score           100 x cosine of picture and caption by the judge, higher is better
        caption_accuracy     share of pictures whose caption the judge tells from other captions
        denoising_loss       mean squared error on held-out pictures, at fixed times and noise
        human_preference     log odds of being preferred by people who compared pictures (`nas judge`), mean 0 over the judged
                             trials of a run; left out where several runs are loaded
        other metrics        each in the column of its own name; all metrics are those at the last rung that was reached
        params               of the network at deploy scale, as are all costs that do not begin with proxy_
        macs, macs_without_attention, macs_padding_free   multiply-adds of one call; without the attention's products;
                             without those with padding
        activation_bytes     of what convolutions, linear layers and attention put out, in float32
        latency_ms           of one picture, where the study has a table of block latencies
        proxy_params, ...    the same of the small network that was trained; proxy_prior_macs of its prior, for one picture
        load_s, train_s, sample_s, score_s, save_s, total_s   seconds by phase, summed over rungs; wall_s from start to end
        passes               of the network that an image of training cost, backward ones counted
        images_per_s, peak_memory_mib   of training
        arch.<axis>          the choices of a search (a list as JSON text)
        cell, factor.<name>  of an ablation instead: the cell's name, and its level of each factor

    A cell without a number is empty. `.attrs["objectives"]` maps the study's objectives to "minimise" or "maximise",
    `.attrs["conditions"]` says what each metric was measured with, `.attrs["lines"]` what real pictures, the autoencoder's copies
    and an untrained network score (`nas.analysis.reference_lines`).

    InputError, one line: no run there, a run of a newer version, no trial trained to the end, or runs whose metrics were
    measured under different conditions (it names the condition).
    """
    from nas.analysis import results

    return results.load_finished(runs)
