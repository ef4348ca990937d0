"""Data sets on disk: listed by what their manifests say, exported whole or not at all; the command line as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from data_pipeline.datasets import SavedDataset, export_dataset, list_datasets, main, save_dataset
from training.child.lifecycle import read_rows
from utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SEPARATORS = "one\u2028two\u2029three\x85four\x0bfive\x1csix\rseven\neight"
"""Where Python ends a line and JSON does not."""


def row(number: int, day: int, said: str = "buy", **metadata: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"state {number}"}, {"role": "assistant", "content": said}],
        "metadata": {
            "trajectory_id": f"t{number}",
            "agent_type": "technical",
            "as_of": f"2014-01-{day:02}T21:00:00Z",
            **metadata,
        },
    }


def saved_in(folder: Path, *rows: dict[str, Any], kind: str = "sft", form: str = "chatml") -> SavedDataset:
    return save_dataset(rows, folder / "datasets", kind=kind, form=form, rule="thresholds")


def command(data_dir: Path, *words: str) -> int:
    return main(["--data_dir", str(data_dir), *words])


def test_a_manifest_says_kind_form_span_and_whose_rows_they_are(tmp_path: Path) -> None:
    saved = saved_in(tmp_path, row(1, 8), row(2, 3), {"messages": [], "metadata": {}})
    assert (saved.from_at, saved.to_at) == ("2014-01-03T21:00:00Z", "2014-01-08T21:00:00Z")
    assert saved.trajectory_ids == ("t1", "t2")
    manifest = json.loads(saved.manifest_path.read_text())
    assert (manifest["kind"], manifest["format"], manifest["rows"]) == ("sft", "chatml", 3)
    assert manifest["agent_type"] == ["None", "technical"]
    assert manifest["ids"] == ["t1", "t2", None]


def test_data_sets_are_listed_by_the_end_of_their_span_newest_first(tmp_path: Path) -> None:
    early, late = saved_in(tmp_path, row(1, 3)), saved_in(tmp_path, row(2, 9), row(3, 4), kind="rl", form="outcomes")
    undated = saved_in(tmp_path, {"messages": [], "metadata": {}})
    listed = list_datasets(tmp_path / "datasets")
    assert [item.dataset_id for item in listed] == [late.dataset_id, early.dataset_id, undated.dataset_id]
    newest = listed[0]
    assert (newest.kind, newest.form, newest.agent_type, newest.rows) == ("rl", "outcomes", "technical", 2)
    assert (newest.from_at, newest.to_at) == ("2014-01-04T21:00:00Z", "2014-01-09T21:00:00Z")
    assert newest.path == late.path


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[1, 2]",
        "{}",
        "{not json",
        '{"dataset_id": "another"}',
        {"rows": "many"},
        {"to": 20140103},
        {"kind": None},
    ],
)
def test_a_file_that_is_no_manifest_is_an_error_that_names_it(tmp_path: Path, damage: str | dict[str, Any]) -> None:
    manifest = saved_in(tmp_path, row(1, 3)).manifest_path
    stated = damage if isinstance(damage, str) else json.dumps(json.loads(manifest.read_text()) | damage)
    manifest.write_text(stated)
    with pytest.raises(ConfigError, match=f"{manifest.name} is not the manifest of a data set"):
        list_datasets(tmp_path / "datasets")


def test_an_export_as_jsonl_is_the_same_bytes(tmp_path: Path) -> None:
    saved = saved_in(tmp_path, row(1, 3), row(2, 4, SEPARATORS))
    assert export_dataset(saved.path, tmp_path / "out.jsonl", "jsonl") == 2
    assert (tmp_path / "out.jsonl").read_bytes() == saved.path.read_bytes()


def test_an_export_as_parquet_holds_every_row_with_messages_as_records_and_metadata_as_text(tmp_path: Path) -> None:
    rows = [row(1, 3), row(2, 4, SEPARATORS, feedback=["a", "b"]), row(3, 5, quality=0.25)]
    saved = saved_in(tmp_path, *rows)
    assert export_dataset(saved.path, tmp_path / "out.parquet", "parquet") == 3
    read = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [line["messages"] for line in read] == [line["messages"] for line in rows]
    assert [json.loads(line["metadata"]) for line in read] == [line["metadata"] for line in rows]


def test_an_export_as_parquet_keeps_numbers_lists_and_columns_that_the_first_row_lacks(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"outcomes": [{"actual_return": 0, "volatility": None, "base_rates": [0.4, 0.5, 0.6]}]},
        {"outcomes": [{"actual_return": -0.25, "volatility": 0.02, "base_rates": [1, 0, 0.5]}], "note": "late"},
    ]
    saved = saved_in(tmp_path, *rows)
    export_dataset(saved.path, tmp_path / "out.parquet", "parquet")
    read = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [line["outcomes"] for line in read] == [line["outcomes"] for line in rows]
    assert [line["note"] for line in read] == [None, "late"]


def test_what_fits_no_column_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    saved = saved_in(tmp_path, {"value": 1}, {"value": ["a", "list"]})
    with pytest.raises(ConfigError, match=r"does not fit the columns of Parquet.*export it as jsonl"):
        export_dataset(saved.path, tmp_path / "out.parquet", "parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    saved = saved_in(tmp_path, row(1, 3))
    with pytest.raises(ConfigError, match="format: 'csv' is neither jsonl nor parquet"):
        export_dataset(saved.path, tmp_path / "out.csv", "csv")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    saved = saved_in(tmp_path, row(1, 3))
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"out\.jsonl exists already"):
        export_dataset(saved.path, tmp_path / "out.jsonl", "jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "mine"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_damaged_or_missing_data_set_is_not_exported(tmp_path: Path, form: str) -> None:
    saved = saved_in(tmp_path, row(1, 3))
    saved.path.write_bytes(saved.path.read_bytes().replace(b"buy", b"bye"))
    with pytest.raises(ConfigError, match="does not hold what its name says"):
        export_dataset(saved.path, tmp_path / "out", form)
    saved.path.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        export_dataset(saved.path, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_a_training_reads_texts_with_separators_of_lines_as_they_were_saved(tmp_path: Path) -> None:
    rows = [row(1, 3, SEPARATORS), row(2, 4)]
    assert read_rows(saved_in(tmp_path, *rows).path) == rows


def test_the_commands_list_and_export_as_they_are_typed(tmp_path: Path) -> None:
    saved = saved_in(tmp_path, row(1, 3), row(2, 9))

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "data_pipeline.datasets", "--data_dir", str(tmp_path), *words]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    target = tmp_path / "out.parquet"
    exported = typed("export", saved.dataset_id[:8], str(target), "--format", "parquet")
    assert (exported.returncode, exported.stderr) == (0, "")
    assert exported.stdout == f"2 rows written to {target}\n"
    assert parquet.read_table(target).num_rows == 2
    again = typed("export", saved.dataset_id[:8], str(target))
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"error: {target} exists already; name another file\n"


def test_a_line_of_the_list_says_name_kind_form_agent_rows_and_span(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = saved_in(tmp_path, row(1, 3), row(2, 9))
    saved_in(tmp_path, {"messages": [], "metadata": {"agent_type": "news"}})
    assert command(tmp_path, "list") == 0
    first, second = capsys.readouterr().out.splitlines()
    said = "sft chatml technical 2 rows 2014-01-03..2014-01-09"
    assert first.split() == [saved.dataset_id[:16], *said.split()]
    assert second.split()[1:] == "sft chatml news 1 rows ..".split()


def test_a_folder_without_data_sets_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path / "nowhere", "list") == 0
    assert capsys.readouterr().out == f"there is no data set in {tmp_path / 'nowhere' / 'datasets'}\n"
    assert command(tmp_path / "nowhere", "export", "abc", str(tmp_path / "out")) == 2


def test_a_name_that_none_or_several_begin_with_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [saved_in(tmp_path, row(number, 3)).dataset_id for number in range(2)]
    assert command(tmp_path, "export", "", str(tmp_path / "out")) == 2
    assert capsys.readouterr().err.startswith("error: 2 data sets in")
    mistyped = f"{names[0][:14]}zz"
    assert command(tmp_path, "export", mistyped, str(tmp_path / "out")) == 2
    assert f"0 data sets in {tmp_path / 'datasets'} begin with {mistyped!r}; did you mean {names[0][:16]!r}?" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_a_target_in_no_folder_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = saved_in(tmp_path, row(1, 3))
    for form in ("jsonl", "parquet"):
        assert command(tmp_path, "export", saved.dataset_id, str(tmp_path / "no" / "out"), "--format", form) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [[], ["export"], ["export", "abc"], ["export", "abc", "out", "--format", "csv"], ["delete", "abc"]]
)
def test_what_the_command_line_does_not_know_ends_with_exit_code_2(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(tmp_path, *words)
    assert ended.value.code == 2
