"""What the study loop costs beside training: trials of a free objective, and how fast the storages take them.

    python benchmarks/study_loop.py                 # 1,000 trials with the journal, then with PostgreSQL where it is installed
    python benchmarks/study_loop.py --rate          # the storage alone, at 1, 4 and 16 clients: trials asked and told a
                                                    # second, and looks of waiting workers into their letter boxes

One process computes at once what it is given, so that what is measured is asking, costing, records, the journal and
Optuna. Both are given: time on the clock, and CPU time of this process, which other users of the machine do not change.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import free_study  # noqa: E402
from at_once import AtOnce  # noqa: E402
from postgres_server import Cluster, binaries  # noqa: E402


class Free(AtOnce):
    """The free objective, in this process."""

    def compute(self, tag, function, *arguments):
        return free_study.prepare() if function.__name__ == "prepare" else free_study.run_rung(vars(arguments[0]))


def loop(trials, url):
    """One run; prints its cost a trial and the memory it grew by after its first tenth."""
    from nas import workers
    from nas.study import Run

    memory, trained = [], 0
    conclude = Run._conclude

    def watched(self, record, state, *arguments):
        nonlocal trained
        conclude(self, record, state, *arguments)
        trained += state not in ("over_budget", "duplicate")
        if trained in (trials // 10, trials):
            memory.append(workers.resident_mib())

    Run._conclude = watched
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(free_study.STUDY.format(trials=trials, workers=2))
        began, cpu = time.perf_counter(), time.process_time()
        running = free_study.coordinate(path, Path(folder) / "runs", url, Free)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    Run._conclude = conclude
    asked = len(running.records)
    print(
        f"{'PostgreSQL' if url else 'journal':<10} {trials} trained of {asked} asked: {took / trials * 1e3:.1f} ms a trial "
        f"({cpu / trials * 1e3:.1f} ms CPU), memory +{memory[-1] - memory[0]:.0f} MiB over the last nine tenths, "
        f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


def client(url, journal, run, count, ready, out):
    """Ask and tell trials with ten parameters, as fast as the storage takes them."""
    import optuna

    from nas.storage import open_storage

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


def waiting(url, journal, run, seconds, ready, out):
    """Look for a job as `nas worker` does, but without a pause."""
    from nas.joined import letter_boxes
    from nas.joining import Box
    from nas.storage import open_storage

    box = Box(letter_boxes(open_storage(url, journal, run), run))
    ready.wait()
    looks, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        box.look()
        looks += 1
    out.put(looks)


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


def rate(url, clients, total=200, seconds=4):
    """Prints asks and tells a second, and looks a second, of all clients together."""
    share = max(1, total // clients)
    spans = side_by_side(clients, client, url, "rate", share)
    took = max(end for _, end in spans) - min(start for start, _ in spans)
    looks = sum(side_by_side(clients, waiting, url, "look", seconds))
    print(
        f"{'PostgreSQL' if url else 'journal':<10} {clients:>3} clients: {clients * share / took:.0f} trials asked and told "
        f"a second, {looks / seconds:.0f} looks of waiting workers a second",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rate", action="store_true")
    chosen = parser.parse_args()
    from nas import joining  # noqa: F401 (once, before clients are forked)

    with Cluster() if binaries() else nullcontext() as cluster:
        for url in [None, *([cluster.url] if cluster else [])]:
            if chosen.rate:
                for clients in (1, 4, 16):
                    rate(url, clients)
            else:
                loop(chosen.trials, url)


if __name__ == "__main__":
    main()
