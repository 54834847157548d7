"""What is committed under studies/ comes back as the frame it was written from."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import synthetic_run
import yaml

import nas
from nas.analysis import ablation, results
from nas.errors import InputError

STUDIES = Path(__file__).parents[1] / "studies"
OWN_TABLE = {"plug_in_transfer"}  # a script of the study wrote its results.csv
COMMITTED = sorted(path for path in STUDIES.iterdir() if results.is_committed(path) and path.name not in OWN_TABLE)


def committed_copy(run_dir, folder):
    """The run's files as a person would commit them."""
    folder.mkdir()
    results.write_csv(run_dir)
    for name in ("results.csv", "conditions.json"):
        shutil.copy(run_dir / name, folder / name)
    written = yaml.safe_load((run_dir / "resolved.yaml").read_text())
    (folder / "study.yaml").write_text(yaml.safe_dump({key: written[key] for key in written if key != "provenance"}))
    return folder


@pytest.mark.parametrize("write", [synthetic_run.write, synthetic_run.write_cells])
def test_a_committed_run_is_the_runs_frame(tmp_path, write):
    run_dir = write(tmp_path / "run")
    table, again = nas.load(run_dir), nas.load(committed_copy(run_dir, tmp_path / "committed"))
    nothing = [name for name in table if table[name].isna().all()]  # a CSV cannot tell which kind of nothing
    for frame in (table, again):
        frame[["reason", *nothing]] = (
            frame[["reason", *nothing]].astype(object).where(frame[["reason", *nothing]].notna(), None)
        )
    pd.testing.assert_frame_equal(table, again)
    assert {**table.attrs, "reference": again.attrs["reference"]} == again.attrs


def test_whole_keys_stay_text(tmp_path, run_dir):
    folder = committed_copy(run_dir, tmp_path / "committed")
    path = folder / "results.csv"
    path.write_text(path.read_text().replace("000000000002", "0000000012e5"))
    assert "0000000012e5" in set(nas.load(folder)["key"])


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_every_column_is_documented(folder):
    told = nas.load.__doc__.split("The columns:")[1]
    table = nas.load(folder)
    for column in table:
        kind = re.sub(
            r"^(proxy_|arch\.|factor\.|fid_|kid_|mind_|precision_|recall_|density_|coverage_|vendi_|memorised_).*",
            r"\1",
            column,
        )
        assert re.search(rf"(?<![a-z_]){re.escape(kind)}", told), column
    assert set(table.attrs["objectives"]) <= set(table.columns)


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.name)
def test_conditions_are_those_of_the_study_file(folder):
    """Every score of the table has its conditions, and those that the study file spells out are the same."""
    study, table = results.settings(folder), nas.load(folder)
    conditions = table.attrs["conditions"]
    place = list(table.columns)
    scores = place[place.index("on_front") + 1 : place.index("params")]
    assert set(conditions) == set(scores)
    for column, found in conditions.items():
        if column != "denoising_loss":
            wanted = {**study.get("sampling", {}), **study.get("evaluation", {})}
            if "references" not in found:  # a score that compares with no real picture
                wanted.pop("references", None)
            varied = {name for name in wanted if found[name] == "as the cell says"}
            assert all(f"sampling.{name}:" in (folder / "study.yaml").read_text() for name in varied)
            assert {name: found[name] for name in wanted.keys() - varied} == {
                name: wanted[name] for name in wanted.keys() - varied
            }


@pytest.mark.parametrize(
    "folder", [path for path in COMMITTED if (path / "effects.csv").exists()], ids=lambda path: path.name
)
def test_effects_come_out_of_the_results_again(folder):
    """What nas.analysis.ablation makes of the committed results is the committed effects.csv."""
    written = pd.read_csv(folder / "effects.csv", dtype={"level": str, "with_level": str, "against": str})
    table = nas.load(folder)
    again = ablation.together({name: ablation.tables(ablation.read(table, name)) for name in table.attrs["objectives"]})
    kinds = written["table"].isin(again["table"])
    assert kinds.all() or set(written.loc[~kinds, "table"]) == {
        "main_effects"
    }  # the differences again, once told twice
    for name in ("mean", "estimate", "low", "high", "p_holm", "repeats_needed"):
        pd.testing.assert_series_equal(
            written.loc[kinds, name].reset_index(drop=True), again[name], rtol=1e-9, check_names=False
        )
    assert written.loc[kinds, "verdict"].fillna("").tolist() == again["verdict"].fillna("").tolist()


def test_what_is_no_table_of_trials_is_refused():
    for name, message in (("plug_in_transfer", "no column 'trial'"), ("table1", "not a run directory")):
        with pytest.raises(InputError, match=message):
            nas.load(STUDIES / name)


def test_studies_compare_only_under_the_same_conditions(tmp_path, run_dir):
    first = committed_copy(run_dir, tmp_path / "first")
    assert nas.load(first, run_dir)["run"].value_counts().to_dict() == {0: 24, 1: 24}
    other = committed_copy(run_dir, tmp_path / "other")
    found = json.loads((other / "conditions.json").read_text())
    found["clip_score"]["guidance"] = 5.0
    (other / "conditions.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"clip_score .* guidance is 3.0 and 5.0"):
        nas.load(first, other)
    (other / "conditions.json").unlink()
    assert len(nas.load(other)) == 24
    with pytest.raises(InputError, match=r"no conditions\.json in it"):
        nas.load(first, other)
