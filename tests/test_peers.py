"""What early stopping sees of the other trials, against plain lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nas.search.peers import ROOM, Peers, Scoreboard

EVENTS = st.lists(st.integers(0, 5), max_size=20)  # which trial is scored next


@given(EVENTS)
def test_a_scoreboard_holds_what_a_dictionary_of_lists_would(events):
    board, plain = Scoreboard(rungs=20, objectives=2), {}
    for place, trial in enumerate(events):
        point = [float(place), float(trial)]
        board.add(trial, point)
        plain.setdefault(trial, []).append(point)
    for trial, curve in plain.items():
        assert board.curve(trial).tolist() == curve
        others = [known for number, known in plain.items() if number != trial]
        for rungs in (1, 2, 3):
            expected = [known[:rungs] for known in others if len(known) >= rungs]
            assert board.others(trial).at(rungs).tolist() == expected
            if others:
                assert Peers.of(others).at(rungs).tolist() == expected


def test_it_grows():
    board = Scoreboard(rungs=2, objectives=1)
    for trial in range(3 * ROOM):
        board.add(trial, [float(trial)])
    board.add(7, [-1.0])
    assert board.curve(7).tolist() == [[7.0], [-1.0]]
    assert board.others(0).at(1).ravel().tolist() == [float(trial) for trial in range(1, 3 * ROOM)]


def test_of_none():
    assert Peers.of([]).at(1).shape[0] == 0
    assert Peers.of([[], np.zeros((1, 2))]).at(1).shape == (1, 1, 2)
