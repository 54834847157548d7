"""What a search with `sampler: evolution` trains: one network in rounds, each without the blocks that were worth least.

SnapFusion's architecture evolution (Li et al. 2023, arXiv 2306.00980, section 4.1). A trial trains the network as it stands, with
`training.block_drop` as the study says, from the weights of the trial before; the first from the study's base. Then
every removal is looked at with the trained weights, on the captions and noise of all other looks, and those that lose least
per cost saved are done (nas.search.evolution). At the target the block of most value is copied, where that fits, or the run ends.
Actions are changes of an axis of the study's space, so that every network on the way is a member of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial

from nas.networks.backbones import Backbone
from nas.numbers import amount, listed
from nas.runs.evolution import Action, Round
from nas.runs.records import Record
from nas.search import evolution
from nas.search.evolution import Removal
from nas.search.samplers import sampler
from nas.seeds import trial_seed
from nas.settings.study import Study
from nas.space.search_space import Choices, SearchSpace
from nas.study.proposer import Look, Reference
from nas.study.trials import Trials, first_record, suggestion
from nas.study.workload import Variant, Workload
from nas.trial.moves import Move, Moves, quality_of


class Evolution:
    """The proposer of an evolution."""

    like: Backbone | None = None

    def __init__(self, study: Study, space: SearchSpace):
        assert study.search is not None
        self._study, self._search, self._space = study, study.search, space
        self._moves = Moves(study, space)
        self._settings = self._moves.settings
        self._quality, self._better = quality_of(study)

    def sampler(self, known: int) -> BaseSampler:
        return sampler(self._search.sampler, self._search.trials, self._study.seed, known)

    def suggested(self, record: Record) -> FixedTrial:
        return suggestion(self._space, record["choices"])

    def open(self, trials: Trials) -> None:
        self._trials = trials
        self._rounds = trials.rounds()
        self._asked: set[int | None] = set()  # places of the actions that are looked at; None: the network itself
        self._failed = {number for number, record in trials.records.items() if record["state"] == "failed"}
        self._ended = False

    def reference(self) -> Reference:
        """The base, which needs no trial's training: the first trial is that."""
        return Reference(Variant(self._moves.network(self._moves.start)))

    def workload(self, workers: int) -> Workload:
        """As many rounds as may be left, by the pace of the base."""
        left = max(0, self._search.trials - len(self._complete()))
        base = self._moves.network(self._moves.start)
        looks = max(0, left - 1) * (1 + len(self._moves.removals(self._moves.start)))
        return Workload([Variant(base)] if left else [], [0] * left, looks, side_by_side=False)

    # -- asking --------------------------------------------------------------------------------------------------

    def ask(self) -> Record | Look | None:
        """The network as it stands, then looks at what it might do without, until the target is reached."""
        records = self._trials.records
        if self._ended or any(record["state"] == "running" for record in records.values()):
            return None
        newest = records[max(records)] if records else None
        if newest is not None and newest["state"] == "failed":
            return self._try_again(newest)
        complete = self._complete()
        if not complete:
            return self._begin(self._moves.start)
        if len(complete) >= self._search.trials:
            self._end(f"all {len(complete)} rounds are done")
            return None
        return self._next(complete[-1])

    def scored(self, record: Record) -> str | None:
        return None

    def _complete(self) -> list[Record]:
        """The rounds so far, in order."""
        return [record for _, record in sorted(self._trials.records.items()) if record["state"] == "complete"]

    def _try_again(self, failed: Record) -> Record | None:
        """The same network once more, if it failed in an earlier session."""
        if failed["trial"] in self._failed:
            return self._begin(failed["choices"])
        self._end(f"trial {failed['trial']} failed; the same command tries its network again")
        return None

    def _begin(self, choices: Choices) -> Record:
        asked = self._trials.ask(self._space.parameters(choices))
        return self._started(asked.number, self._space.suggest(asked))

    def begin(self, asked: FrozenTrial) -> Record:
        return self._started(asked.number, self._space.suggest(FixedTrial(asked.params)))

    def _started(self, number: int, choices: Choices) -> Record:
        """The first record of a trial, whose parent is the last one before it that was trained to its end."""
        record = first_record(self._study, number, choices, self._moves.network(choices))
        record |= {"repeat": 0, "seed": trial_seed(self._study.seed, record["key"], number)}
        if before := [one["trial"] for one in self._complete() if one["trial"] < number]:
            record["parent"] = before[-1]
        self._trials.start(record)
        return record

    def _end(self, why: str) -> None:
        """Nothing more is asked for in this session."""
        self._ended = True
        self._trials.say(why)

    # -- a round -------------------------------------------------------------------------------------------------

    def _next(self, last: Record) -> Record | Look | None:
        """A look that the round after this trial still needs, or the trial that follows."""
        found = self._round(last)
        if found is None:
            return None
        if not _done(found):
            if (look := self._look(last, found)) is not None or self._asked:
                return look
            if not self._decide(last, found):
                return None
        return self._begin(self._moves.changed(last["choices"], _changes(_done(found))))

    def _round(self, last: Record) -> Round | None:
        """What is weighed after a trial; None where it has come to the end."""
        if known := next((one for one in self._rounds if one["trial"] == last["trial"]), None):
            return known
        cost = self._moves.cost(self._moves.network(last["choices"]))
        removals, copies = self._moves.removals(last["choices"]), list[Move]()
        told = f"{amount(cost)} {self._settings.cost}, target {amount(self._moves.target)}"
        if cost <= self._moves.target:
            copies = [move for move in self._moves.copies(last["choices"]) if move.cost <= self._moves.target]
            if not copies:
                self._end(f"the target is reached by trial {last['trial']}: {told}")
                return None
        elif not removals:
            self._end(f"nothing is left to remove after trial {last['trial']}: {told}")
            return None
        actions = [_action(move, last["choices"]) for move in (*removals, *copies)]
        made = Round(trial=last["trial"], cost=cost, quality=None, actions=actions)
        self._rounds.append(made)
        self._trials.keep_rounds(self._rounds)
        return made

    def _look(self, last: Record, found: Round) -> Look | None:
        """One that is not made and not under way: at the network itself first, then at each removal."""
        wanted: list[int | None] = [None] if found["quality"] is None else []
        wanted += [place for place, action in enumerate(found["actions"]) if _unseen(action)]
        place = next((one for one in wanted if one not in self._asked), -1)
        if place == -1:
            return None
        self._asked.add(place)
        changes = {} if place is None else _changes([found["actions"][place]])
        network = self._moves.network(self._moves.changed(last["choices"], changes))
        return Look(
            (network.to_dict(),),
            partial(self._take, found, place),
            images=self._study.look_images,
            parent=last["trial"],
        )

    def _take(self, found: Round, place: int | None, seen: Sequence[Mapping[str, Any]]) -> None:
        """Note what a look gave."""
        self._asked.discard(place)
        (look,) = seen
        quality = look["metrics"].get(self._quality)
        if place is not None:
            found["actions"][place] |= {"quality": quality, "failed": look["failed"]}
        elif quality is None:
            self._end(f"the network of trial {found['trial']} cannot be looked at: {look['failed']}")
        else:
            found["quality"] = quality
        self._trials.keep_rounds(self._rounds)

    def _decide(self, last: Record, found: Round) -> bool:
        """Choose what is done, and write it down; whether there is anything."""
        removals = self._weighed(found)
        if found["cost"] > self._moves.target:
            wanted = found["cost"] - self._moves.target
            chosen = [one.axis for one in evolution.group(removals, self._settings.group, wanted)]
            kind, why = "removal", "no removal could be looked at"
            after = {action["axis"]: action["after"] for action in found["actions"] if action["kind"] == "removal"}
            while not self._moves.together(last["choices"], {axis: after[axis] for axis in chosen}):
                chosen.pop()
        else:
            added = {one["axis"]: one["cost"] - found["cost"] for one in found["actions"] if one["kind"] == "copy"}
            axis = evolution.copied(removals, added, self._moves.target - found["cost"])
            chosen, kind = [axis] if axis is not None else [], "copy"
            why = f"the target is reached by trial {last['trial']}, and no copy is worth its cost"
        for action in found["actions"]:
            action["done"] = action["kind"] == kind and action["axis"] in chosen
        self._trials.keep_rounds(self._rounds)
        if not chosen:
            failed = [action["failed"] for action in found["actions"] if action["failed"]]
            self._end(f"{why}; the last: {failed[-1]}" if failed else why)
        else:
            self._trials.say(_told(found))
        return bool(chosen)

    def _weighed(self, found: Round) -> list[Removal]:
        """Every removal with its value; what could not be looked at is left out."""
        whole = found["quality"]
        assert whole is not None
        weighed: dict[str, Removal] = {}
        for action in found["actions"]:
            if action["kind"] == "removal" and action["quality"] is not None:
                loss = self._better * (whole - action["quality"])
                weighed[action["axis"]] = Removal(action["axis"], loss, found["cost"] - action["cost"])
        for action in found["actions"]:
            action["value"] = weighed[action["axis"]].value if action["axis"] in weighed else None
        return list(weighed.values())


def _action(move: Move, member: Mapping[str, Any]) -> Action:
    """A change that was not looked at."""
    return Action(
        axis=move.axis,
        kind=move.kind,
        before=member[move.axis],
        after=move.choice,
        cost=move.cost,
        quality=None,
        failed="",
        value=None,
        done=False,
    )


def _unseen(action: Action) -> bool:
    return action["kind"] == "removal" and action["quality"] is None and not action["failed"]


def _done(found: Round) -> list[Action]:
    return [action for action in found["actions"] if action["done"]]


def _changes(actions: Sequence[Action]) -> dict[str, Any]:
    """The choices that actions make, by axis."""
    return {action["axis"]: action["after"] for action in actions}


def _told(found: Round) -> str:
    """What is done after a round, in a line."""
    done = [f"{one['axis']} {one['before']} to {one['after']}" for one in _done(found)]
    kind = "copied" if _done(found)[0]["kind"] == "copy" else "removed"
    return f"after trial {found['trial']} {kind}: {listed(done)}"
