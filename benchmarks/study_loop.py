"""What the study loop costs beside training: trials of a free objective, and how fast the storages take them.

    python benchmarks/study_loop.py                 # 1,000 trials with the journal, then with PostgreSQL where it is installed
    python benchmarks/study_loop.py --rule halving  # the journal alone, three objectives and three rungs: trials are stopped
    python benchmarks/study_loop.py --rate          # the storage alone, at 1, 4 and 16 clients: trials asked and told a second

One process computes at once what it is given, so that what is measured is asking, costing, records, the journal and
Optuna. Both are given: time on the clock, and CPU time of this process, which other users of the machine change less. The CPU
time of the last tenth of the trials says whether a trial costs more as a study grows.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import free_study  # noqa: E402
from at_once import AtOnce  # noqa: E402
from postgres_server import Cluster, binaries  # noqa: E402

from nas.runs.records import UNTRAINED  # noqa: E402
from nas.study.candidates import Candidates  # noqa: E402
from nas.study.trials import Trials  # noqa: E402
from nas.workers import local  # noqa: E402


class Free(AtOnce):
    """The free objective, in this process."""

    def compute(self, tag, function, *arguments):
        function, *arguments = free_study.free(function, arguments)
        return function(*arguments)


class Watch:
    """Memory and CPU time as trials end, and what deciding who goes on took of it."""

    def __init__(self, trials):
        self.trials, self.trained, self.deciding = trials, 0, 0.0
        self.memory, self.cpu = {}, {}

    def concluded(self, state):
        self.trained += state not in UNTRAINED
        for share in (0.1, 0.9, 1.0):
            if self.trained == round(share * self.trials) and share not in self.memory:
                self.memory[share], self.cpu[share] = local.resident_mib(), time.process_time()

    @contextmanager
    def installed(self):
        """Put between the loop and what it calls."""
        conclude, scored = Trials.conclude, Candidates.scored

        def watched(trials, record, state, reason):
            conclude(trials, record, state, reason)
            self.concluded(state)

        def timed(proposer, record):
            began = time.process_time()
            told = scored(proposer, record)
            self.deciding += time.process_time() - began
            return told

        Trials.conclude, Candidates.scored = watched, timed
        yield
        Trials.conclude, Candidates.scored = conclude, scored


STOPPING = ["search.minimise=[fid_efficientnet_lite0, macs, params]", "stopping.rungs=[0.25, 0.5, 1.0]"]


def loop(trials, url, rule=None):
    """One run; prints its cost a trial and the memory it grew by after its first tenth. Returns CPU ms a trial."""
    watch, overrides = Watch(trials), [*STOPPING, f"stopping.rule={rule}"] if rule else []
    with tempfile.TemporaryDirectory() as folder, watch.installed():
        path = Path(folder) / "study.yaml"
        path.write_text(free_study.STUDY.format(trials=trials, workers=2))
        began, cpu = time.perf_counter(), time.process_time()
        running = free_study.coordinate(path, Path(folder) / "runs", url, Free, overrides)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    stopped = sum(record["state"] == "stopped" for record in running.records.values())
    last = (watch.cpu[1.0] - watch.cpu[0.9]) / (0.1 * trials)
    print(
        f"{'PostgreSQL' if url else 'journal':<10} {rule or 'none':<11} {trials} trained of {len(running.records)} asked, "
        f"{stopped} stopped: {took / trials * 1e3:.1f} ms a trial ({cpu / trials * 1e3:.1f} ms CPU, "
        f"{last * 1e3:.1f} over the last tenth, {watch.deciding / trials * 1e3:.2f} to decide), "
        f"memory +{watch.memory[1.0] - watch.memory[0.1]:.0f} MiB over the last nine tenths, "
        f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB",
        flush=True,
    )
    return cpu / trials * 1e3


def client(url, journal, run, count, ready, out):
    """Ask and tell trials with ten parameters, as fast as the storage takes them."""
    import optuna

    from nas.runs.storage.journal import open_storage

    study = optuna.create_study(
        storage=open_storage(url, journal, run),
        study_name=run,
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
    )
    ready.wait()
    began = time.perf_counter()
    for _ in range(count):
        asked = study.ask()
        for axis in range(10):
            asked.suggest_float(str(axis), 0, 1)
        study.tell(asked, 0.0)
    out.put((began, time.perf_counter()))


def side_by_side(clients, work, url, run, size):
    """What each of the clients, all of them processes, puts out."""
    context = multiprocessing.get_context("fork")
    ready, out = context.Barrier(clients), context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (url, Path(folder) / "journal.log", f"{run}/{clients}", size, ready, out)
        processes = [context.Process(target=work, args=arguments) for _ in range(clients)]
        for process in processes:
            process.start()
        return [out.get() for _ in processes]


def rate(url, clients, total=200):
    """Prints asks and tells a second of all clients together."""
    share = max(1, total // clients)
    spans = side_by_side(clients, client, url, "rate", share)
    took = max(end for _, end in spans) - min(start for start, _ in spans)
    print(
        f"{'PostgreSQL' if url else 'journal':<10} {clients:>3} clients: {clients * share / took:.0f} trials asked and "
        "told a second",
        flush=True,
    )


def repeated(chosen, url):
    """The loop as often as was chosen, and the median."""
    found = [loop(chosen.trials, url, chosen.rule) for _ in range(chosen.repeats)]
    if len(found) > 1:
        print(f"median of {len(found)}: {statistics.median(found):.1f} ms CPU a trial", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rule", choices=("halving", "improvement", "slope", "median"), help="stop trials early by it")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rate", action="store_true")
    chosen = parser.parse_args()
    if chosen.rule:
        return repeated(chosen, None)
    with Cluster() if binaries() else nullcontext() as cluster:
        for url in [None, *([cluster.url] if cluster else [])]:
            if chosen.rate:
                for clients in (1, 4, 16):
                    rate(url, clients)
            else:
                repeated(chosen, url)


if __name__ == "__main__":
    main()
