"""The file of what people answered: whole rows, undo, what a killed process left, and lines that nobody could have written."""

import pytest

from nas.errors import InputError
from nas.runs import judgements
from nas.runs.judgements import Judgement


def test_what_is_written_is_read_and_undo_takes_the_judges_last_back(tmp_path):
    made = Judgement("ann", "2026-01-01T10:00:00+00:00", 3, "0", "a/b:12", "tie", 1.25)
    other = Judgement("Ben O", "2026-01-01T10:00:01+00:00", 0, "10", "9", "left", 2.0)
    assert judgements.add(tmp_path, made, 0) and judgements.add(tmp_path, other, 0)
    assert judgements.read(tmp_path) == [made, other] and judgements.read(tmp_path / "none") == []
    assert not judgements.add(tmp_path, made, 0)  # it was answered already
    assert judgements.add(tmp_path, Judgement(**{**vars(made), "answer": "undo"}), 1)
    assert judgements.read(tmp_path) == [other] and len((tmp_path / judgements.FILE).read_text().splitlines()) == 4
    assert other.question == (0, "10", "9") and other.value == 1 and made.value == 0


def test_what_a_killed_process_left_of_a_row_is_cut_away(tmp_path):
    made = Judgement("ann", "", 0, "0", "1", "left", 1.0)
    path = tmp_path / judgements.FILE
    for left in ("judge,ti", ",".join(judgements.HEAD) + "\nann,,0,0,1,left,1.0\nann,,0,1,2,le"):
        path.write_text(left)
        before = judgements.read(tmp_path)
        assert judgements.add(tmp_path, made, len(before)) and judgements.read(tmp_path) == [*before, made]


@pytest.mark.parametrize(
    "row",
    [
        "ann,,0,0,0,left,1",
        "ann,,-1,0,1,left,1",
        "ann,,0,0,1,up,1",
        "ann,,0,0,1,left",
        "ann,,0,x,1,left,1",
        ",,0,0,1,tie,1",
        "",
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, row):
    path = tmp_path / judgements.FILE
    path.write_text(",".join(judgements.HEAD) + f"\nann,,0,0,1,left,1\n{row}\n")
    with pytest.raises(InputError, match=f"{path}: line 3: not what nas judge writes, .*; remove the line"):
        judgements.read(tmp_path)
    path.write_text("a,b\n")
    with pytest.raises(InputError, match="line 1: expected the columns judge,time"):
        judgements.read(tmp_path)
