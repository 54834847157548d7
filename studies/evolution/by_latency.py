"""What the evolution of study.yaml would have removed by milliseconds: the choice of every round once more, from its own looks.

    nas run studies/evolution
    python studies/evolution/by_latency.py [RUN]

An evolution by by_latency.yaml has the same base, seeds, trainings and looks, and differs where a choice does: as long as none
does, it is the same run. Without RUN it reads what is committed beside this file. Writes by_latency.csv, a row a trial.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from nas.runs import evolution as rounds
from nas.runs.evolution import Round
from nas.search import evolution
from nas.search.evolution import Removal
from nas.settings import study_file
from nas.space.search_space import Choices, SearchSpace
from nas.trial.moves import Moves

HERE = Path(__file__).parent


def again(found: Round, member: Choices, moves: Moves) -> list[str]:
    """The axes that a round removes blocks of by the cost of `moves`."""
    whole, now = found["quality"], moves.cost(moves.network(member))
    assert whole is not None
    removals = [
        Removal(one["axis"], whole - one["quality"], now - cost_after(moves, member, {one["axis"]: one["after"]}))
        for one in found["actions"]
        if one["kind"] == "removal" and one["quality"] is not None
    ]
    wanted = now - moves.target
    return [one.axis for one in evolution.group(removals, moves.settings.group, wanted)] if wanted > 0 else []


def cost_after(moves: Moves, member: Choices, changes: Choices) -> float:
    return moves.cost(moves.network(moves.changed(member, changes)))


def rows(run: Path) -> Iterator[dict[str, object]]:
    """Every trial: what it costs, and what is removed after it by either cost."""
    study = study_file.load(HERE / "by_latency.yaml")
    moves = Moves(study, SearchSpace.load(str(study.space)))
    scores = pd.read_csv(run / "results.csv").set_index("trial")
    by_trial = {found["trial"]: found for found in rounds.read(run)}
    member, base = moves.start, moves.cost(moves.network(moves.start))
    for trial in scores.index:
        found = by_trial.get(trial)
        done = {one["axis"]: one["after"] for one in found["actions"] if one["done"]} if found else {}
        cost = moves.cost(moves.network(member))
        by_latency = again(found, member, moves) if found else []
        yield {
            "trial": trial,
            "macs": scores.loc[trial, "macs"],
            "latency_ms": cost,
            "latency_share": cost / base,
            "prompt_accuracy": scores.loc[trial, "prompt_accuracy"],
            "removed_by_macs": " ".join(sorted(done)),
            "removed_by_latency": " ".join(sorted(by_latency)),
        }
        member = moves.changed(member, done)


def main() -> None:
    table = pd.DataFrame(rows(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE))
    table.to_csv(HERE / "by_latency.csv", index=False, float_format="%.6g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
