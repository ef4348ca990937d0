"""Data sets on disk: immutable JSON lines named by the hash of their content, a manifest beside each, and their export.

Written by the training pipelines, read by the training children and by people: ``python -m data_pipeline.datasets list`` and
``export``. A data set is never changed; one file is one training's input, whole.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.artifacts import write_atomically, written_aside
from utils.errors import ConfigError, LibraryConflict, nearest
from utils.hashing import canonical_json, file_sha256, sha256_hex

FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True, slots=True)
class SavedDataset:
    """An immutable data set on disk: `dataset_id` is the SHA-256 of the file's bytes and its name.

    `trajectory_ids` are those of the rows that name theirs, in the file's order.
    """

    dataset_id: str
    path: Path
    manifest_path: Path
    rows: int
    from_at: str | None
    to_at: str | None
    trajectory_ids: tuple[str, ...] = ()


def save_dataset(
    rows: Sequence[Mapping[str, Any]], directory: Path | str, *, kind: str, form: str, rule: Any = None
) -> SavedDataset:
    """Write rows as ``<sha256>.jsonl`` with a manifest beside it; the same rows again are a no-op.

    Parameters
    ----------
    rows : sequence of mapping
        JSON values; `metadata` has trajectory_id, agent_type, as_of.
    kind, form, rule : str
        What is trained on them, what a row holds, how they were picked; for the manifest.

    Raises
    ------
    ValueError
        If there is no row.
    LibraryConflict
        If a file of that name holds something else.
    """
    if not rows:
        raise ValueError("a data set without rows is not written")
    content = "".join(f"{canonical_json(row)}\n" for row in rows).encode()
    dataset_id = sha256_hex(content)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path, manifest_path = folder / f"{dataset_id}.jsonl", folder / f"{dataset_id}.json"
    metadata = [row.get("metadata", {}) for row in rows]
    times = sorted(m["as_of"] for m in metadata if m.get("as_of"))
    saved = SavedDataset(
        dataset_id,
        path,
        manifest_path,
        len(rows),
        times[0] if times else None,
        times[-1] if times else None,
        tuple(m["trajectory_id"] for m in metadata if m.get("trajectory_id")),
    )
    manifest = {
        "dataset_id": dataset_id,
        "kind": kind,
        "format": form,
        "agent_type": only_value({m.get("agent_type") for m in metadata}),
        "rule": rule,
        "rows": saved.rows,
        "from": saved.from_at,
        "to": saved.to_at,
        "ids": [m.get("trajectory_id") for m in metadata],
    }
    if path.exists():
        if path.read_bytes() != content:
            raise LibraryConflict(
                f"{path} was changed and does not hold what its name says; remove it, and it is written anew"
            )
    else:
        write_atomically(path, content)
    write_atomically(manifest_path, json.dumps(manifest, indent=1, sort_keys=True))
    return saved


def only_value(values: set[Any]) -> Any:
    """The value where there is exactly one; a mixture is a sorted list."""
    return next(iter(values)) if len(values) == 1 else sorted(str(value) for value in values)


@dataclass(frozen=True, slots=True)
class ListedDataset:
    """What the manifest of a data set says."""

    dataset_id: str
    path: Path
    kind: str
    form: str
    agent_type: str
    rows: int
    from_at: str | None
    to_at: str | None


def list_datasets(directory: Path) -> list[ListedDataset]:
    """Return the data sets of a folder, by the end of their span, newest first; a manifest that cannot be read is an error.

    Raises
    ------
    ConfigError
        Naming the file.
    """
    found = []
    for manifest in sorted(directory.glob("*.json")):
        try:
            found.append(_listed(manifest, json.loads(manifest.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{manifest} is not the manifest of a data set: {error!r}") from None
    return sorted(found, key=lambda d: (d.to_at or "", d.dataset_id), reverse=True)


def _listed(manifest: Path, stated: Any) -> ListedDataset:
    """Return what a manifest states; a KeyError, TypeError or ValueError if it is none."""
    if stated["dataset_id"] != manifest.stem:
        raise ValueError(f"dataset_id {stated['dataset_id']!r} is not the file's name")
    for name, kinds in (
        ("kind", str),
        ("format", str),
        ("rows", int),
        ("from", (str, type(None))),
        ("to", (str, type(None))),
    ):
        if not isinstance(stated[name], kinds):
            raise TypeError(f"{name}: {stated[name]!r}")
    return ListedDataset(
        stated["dataset_id"],
        manifest.with_suffix(".jsonl"),
        stated["kind"],
        stated["format"],
        str(stated["agent_type"]),
        stated["rows"],
        stated["from"],
        stated["to"],
    )


def export_dataset(path: Path, target: Path, form: str) -> int:
    """Write a data set elsewhere, as ``jsonl`` or ``parquet``; returns the number of rows.

    In Parquet, messages stay lists of records, and `metadata` is a column of JSON text, since rows differ in its keys.

    Raises
    ------
    ConfigError
        If the format is unknown, the target exists, or the file does not hold what its name says.
    """
    if form not in FORMATS:
        raise ConfigError(f"format: {form!r} is neither jsonl nor parquet")
    if target.exists():
        raise ConfigError(f"{target} exists already; name another file")
    if not path.is_file() or file_sha256(path) != path.stem:
        raise ConfigError(f"{path} is missing or does not hold what its name says")
    content = path.read_bytes()
    lines = content.splitlines()  # of bytes: a text may hold separators of lines that no JSON escapes
    if form == "jsonl":
        write_atomically(target, content)
        return len(lines)
    try:
        from pyarrow import ArrowException, Table, parquet
    except ImportError as error:
        raise ConfigError(f"format: parquet needs pyarrow ({error}); install stock-agents[training]") from None
    rows = [{key: _cell(key, value) for key, value in json.loads(line).items()} for line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        table = Table.from_pydict({name: [row.get(name) for row in rows] for name in names})
        with written_aside(target) as aside:
            parquet.write_table(table, aside)
    except ArrowException as error:
        raise ConfigError(f"{path} does not fit the columns of Parquet ({error}); export it as jsonl") from None
    return len(rows)


def _cell(key: str, value: Any) -> Any:
    return canonical_json(value) if key == "metadata" else value


def main(arguments: Sequence[str] | None = None) -> int:
    """List or export data sets; the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.datasets", description="Training data sets.")
    parser.add_argument("--data_dir", type=Path, default=Path("var"), help="of the daemon that wrote them; default var")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every data set, newest first")
    export = commands.add_parser("export", help="write one elsewhere")
    export.add_argument("dataset", help="its name, or the beginning of it")
    export.add_argument("target", type=Path, help="file to write")
    export.add_argument("--format", choices=FORMATS, default="jsonl")
    options = parser.parse_args(arguments)
    folder = options.data_dir / "datasets"
    try:
        found = list_datasets(folder)
        if options.command == "list":
            for item in found:
                span = f"{(item.from_at or '')[:10]}..{(item.to_at or '')[:10]}"
                sys.stdout.write(
                    f"{item.dataset_id[:16]}  {item.kind:4} {item.form:12} {item.agent_type:12} {item.rows:6} rows  {span}\n"
                )
            if not found:
                sys.stdout.write(f"there is no data set in {folder}\n")
            return 0
        matching = [item for item in found if item.dataset_id.startswith(options.dataset)]
        if len(matching) != 1:
            hint = nearest(options.dataset, [item.dataset_id[:16] for item in found]) if not matching else ""
            raise ConfigError(f"{len(matching)} data sets in {folder} begin with {options.dataset!r}{hint}; see 'list'")
        rows = export_dataset(matching[0].path, options.target, options.format)
        sys.stdout.write(f"{rows} rows written to {options.target}\n")
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
