"""A study whose trials cost nothing: scores are made up from the architecture, in worker processes that need no torch."""

import json
import os
import sys
import time
from functools import partial
from hashlib import sha256
from io import StringIO
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

from nas.trial.clock.pace import Pace
from nas.workers.local import Workers
from nas.workers.ray_engine import RayEngine

STUDY = """
name: free
space: mobilediffusion
dataset: emoji
budget: {{params: 400M, macs: 200G}}
search: {{sampler: random, trials: {trials}, minimise: [fid_efficientnet_lite0, macs]}}
stopping: {{rule: none, rungs: [0.5, 1.0]}}
tracking: {{mode: "off"}}
workers: {workers}
"""
SECONDS = "NAS_TEST_RUNG_SECONDS"


def search(name, sampler, trials):
    """Such a study under another name, by another sampler, with one worker."""
    text = STUDY.format(trials=trials, workers=1)
    return text.replace("name: free", f"name: {name}").replace("sampler: random", f"sampler: {sampler}")


class Bare(Workers):
    """Real worker processes without torch."""

    def _begin(self):
        return nothing


class FreeWorkers(Bare):
    """They compute the functions below in place of those of nas.trial.rung."""

    def submit(self, tag, function, *arguments):
        super().submit(tag, *free(function, arguments))


class FreeRay(RayEngine):
    """The same on a Ray cluster."""

    def _process(self):
        return partial(Bare, 1, SimpleNamespace(worker_memory=None), self._cache, devices=[])

    def submit(self, tag, function, *arguments):
        super().submit(tag, *free(function, arguments))


def free(function, arguments):
    """The job that stands for one of nas.trial.rung's."""
    if function.__name__ == "prepare":
        return (prepare,)
    if function.__name__ == "measure":
        return (no_lines,)
    if function.__name__ == "clock":
        return (no_pace,)
    (job,) = arguments
    return run_rung, {**vars(job), "folder": str(job.folder)}


def nothing():
    pass


def prepare():
    return {"fid_efficientnet_lite0": {"unit": "", "higher_is_better": False}}, ["a", "b"]


def no_lines():
    return {}


def no_pace():
    return Pace(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def run_rung(job):
    began = time.time()
    time.sleep(float(os.environ.get(SECONDS, "0")))
    digest = sha256(json.dumps([job["architecture"], job["seed"]], sort_keys=True).encode()).digest()
    score = 100 + int.from_bytes(digest[:4], "big") / 2**32 * 100 - 10 * job["rung"]
    rung = {
        "rung": job["rung"],
        "images_seen": job["images_seen"],
        "metrics": {"fid_efficientnet_lite0": score, "denoising_loss": score / 1000},
        "timings": {"train_s": 1.0},
        "span": [began, time.time()],
        "images_per_s": 10.0,
        "peak_memory_mib": 1.0,
        "worker": os.getpid(),
    }
    return {"rung": rung, "proxy": job["architecture"], "proxy_cost": {"params": 1, "macs": 2}}


def coordinate(path, root, url=None, make=FreeWorkers, overrides=()):
    """What `nas run` does with the study, without its report."""
    from rich.console import Console

    from nas.report.live.progress import Progress
    from nas.runs.directory import open_run
    from nas.settings import study_file
    from nas.space.search_space import SearchSpace
    from nas.study.candidates import Candidates
    from nas.study.run import Run

    loaded = study_file.load(Path(path), overrides)
    directory, _ = open_run(loaded, Path(root))
    lock = directory.lock()
    progress = Progress(Console(file=StringIO()))
    proposer = Candidates(loaded, SearchSpace.load(loaded.space))
    running = Run(loaded, proposer, directory, progress, url, make)
    running.execute()
    lock.close()
    return running


def forked(function, *arguments):
    """The id of a child process that does this; its workers import nothing of the program that forked it."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        forkserver._forkserver.__init__()  # the server of the program that forked it is not its child
        main = sys.modules["__main__"]
        main.__spec__ = None
        vars(main).pop("__file__", None)
        function(*arguments)
        code = 0
    except BaseException as error:
        code = 143 if type(error).__name__ == "Terminated" else 1
        print(f"{type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
    finally:
        os._exit(code)
