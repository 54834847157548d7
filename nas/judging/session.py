"""One judge at work: the next question with its pictures, an answer, and the last answer taken back."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock
from typing import Any

from nas.errors import InputError
from nas.judging import questions
from nas.judging.contest import Contest
from nas.judging.questions import Shown
from nas.runs import judgements
from nas.runs.directory import now
from nas.runs.judgements import JUDGE, UNDO, Judgement


class Session:
    """What a judge is shown is decided from the file of answers, so a session goes on where it was left."""

    def __init__(self, contest: Contest, judge: str):
        """InputError for a name that no judge can have, for a damaged file and for one that cannot be written."""
        if not JUDGE.fullmatch(judge):
            raise InputError(f"--judge {judge!r}: expected a name of 40 letters, digits, spaces or . @ - at most")
        judgements.check_writable(contest.run)
        self.contest, self.judge = contest, judge
        self._turn = Lock()
        self._open: tuple[int, Shown | None] = (-1, None)  # a question's number, and what was asked
        self._asked()

    def question(self) -> dict[str, Any]:
        """What the page shows; nothing in it says whose the pictures are. Without pictures when all is answered."""
        with self._turn:
            number, asked = self._asked()
        told: dict[str, Any] = {"number": number, "pairs": self.contest.asked.pairs}
        return told if asked is None else told | self._shown(asked)

    def answer(self, number: int, answer: str, seconds: float) -> bool:
        """Record the answer to the judge's question of this number; False where that is none that is open."""
        with self._turn:
            opened, asked = self._open
            if asked is None or number != opened:
                return False
            made = Judgement(self.judge, now(), asked.caption, asked.left, asked.right, answer, round(seconds, 3))
            return judgements.add(self.contest.run, made, number)

    def undo(self, number: int) -> bool:
        """Take the judge's last answer back, the one before the question of this number; False where there is none."""
        with self._turn:
            own = [one for one in judgements.read(self.contest.run) if one.judge == self.judge]
            if not own or number != len(own):
                return False
            return judgements.add(self.contest.run, replace(own[-1], time=now(), answer=UNDO, seconds=0.0), number)

    def _asked(self) -> tuple[int, Shown | None]:
        """The open question, which stays the same until it is answered, whatever others answer meanwhile."""
        given = judgements.read(self.contest.run)
        number = judgements.count(given, self.judge)
        if number != self._open[0]:
            self._open = number, questions.following(self.contest.asked, given, self.judge)
        return self._open

    def _shown(self, asked: Shown) -> dict[str, Any]:
        left, right = (self.contest.pictures[trial][asked.caption] for trial in (asked.left, asked.right))
        return {"caption": self.contest.captions[asked.caption], "left": left, "right": right}
