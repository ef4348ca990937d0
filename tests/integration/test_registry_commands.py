"""``python -m training.model_registry`` as users type it: real processes beside the process that owns the embedded database."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from version_factory import CUTOFF, Made, make_version, promote

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training import model_card
from training.model_registry import ModelRegistry
from training.small_base_model import Recipe
from utils.artifacts import folder_digest, seal
from utils.settings import ENVIRONMENT

pytestmark = pytest.mark.timeout(120)

RUN, OLD_RUN = "a" * 32, "b" * 32


@dataclass(frozen=True, slots=True)
class Place:
    """A data directory whose database this process owns, as a daemon would; its library writes to `RUN`."""

    library: ExperienceLibraryPostgres
    data_dir: Path


@pytest.fixture
def place(prepared_data_dir: Path) -> Iterator[Place]:
    library = ExperienceLibraryPostgres.embedded(prepared_data_dir)
    with library.connection() as connection, connection.cursor() as cursor:
        for run, mode, day in ((OLD_RUN, "replay", 1), (RUN, "replay", 2)):
            cursor.execute(
                "INSERT INTO runs (run_id, mode, config, data_hashes, created_at) VALUES (%s, %s, '{}', '{}', %s)",
                (run, mode, datetime(2024, 1, day, tzinfo=UTC)),
            )
    library.run_id = RUN
    yield Place(library, prepared_data_dir)
    library.close()


Ended = subprocess.CompletedProcess[str]


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Ended]:
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT.values()}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])

    def run(*arguments: object) -> Ended:
        given = [sys.executable, "-m", "training.model_registry", *map(str, arguments)]
        return subprocess.run(given, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    return run


def assert_refused(ended: Ended, *words: str) -> None:
    """Exit code 2 and one line on standard error that says what is wrong."""
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("error: ")
    for word in words:
        assert word in ended.stderr


def test_list_shows_versions_with_state_aliases_verdict_and_data_of_the_newest_run(
    place: Place, command: Callable[..., Ended]
) -> None:
    champion = make_version(place.library, place.data_dir, 1)
    strategist = make_version(place.library, place.data_dir, 2, agent="strategist", state="trained", gate=None)
    promote(place.library, champion)
    ended = command("list", "--data_dir", place.data_dir)
    assert ended.returncode == 0, ended.stderr
    head, titles, *lines = ended.stdout.splitlines()
    assert head.startswith("run aaaaaaaaaaaa (replay, ")
    assert titles.split("  ")[0] == "version"
    rows = {line.split()[0]: line for line in lines}
    assert rows[champion.model.version].split()[1:] == [
        "technical", "champion", "champion", "reject", "2014-03-10T21:00:00Z", "there",
    ]  # fmt: skip
    assert rows[strategist.model.version].split()[1:5] == ["strategist", "trained", "-", "none"]
    only = command("--data_dir", place.data_dir, "list", "--agent", "strategist")
    assert champion.model.version not in only.stdout
    assert strategist.model.version in only.stdout
    other = command("list", "--data_dir", place.data_dir, "--run", "bbbb")
    assert other.stdout.startswith("run bbbbbbbbbbbb")
    (line,) = [line for line in other.stdout.splitlines() if line.startswith(champion.model.version)]
    assert line.split()[1:4] == ["technical", "champion", "-"]  # the state is of all runs, an alias of one


def test_list_of_an_empty_registry_says_so(place: Place, command: Callable[..., Ended]) -> None:
    ended = command("list", "--data_dir", place.data_dir)
    assert (ended.returncode, ended.stdout.splitlines()[1]) == (0, "no model has been trained yet")


def test_a_live_run_goes_before_a_replay_that_was_started_later(place: Place, command: Callable[..., Ended]) -> None:
    with place.library.connection() as connection:
        connection.execute("UPDATE runs SET mode = 'live' WHERE run_id = %s", (OLD_RUN,))
    assert command("list", "--data_dir", place.data_dir).stdout.startswith("run bbbbbbbbbbbb (live")


def test_show_prints_the_card_and_an_unknown_version_names_the_nearest(
    place: Place, command: Callable[..., Ended]
) -> None:
    made = make_version(place.library, place.data_dir, 1)
    version = made.model.version
    ended = command("show", version, "--data_dir", place.data_dir)
    assert ended.returncode == 0, ended.stderr
    for words in (f"# {version}", "Verdict: reject", "-0.03125", "0.1.0+gabc", "321"):
        assert words in ended.stdout
    wrong = version[:-1] + "z"
    assert_refused(command("show", wrong, "--data_dir", place.data_dir), wrong, f"did you mean '{version}'")


def test_promote_and_rollback_move_aliases_in_the_run_and_say_what_serves(
    place: Place, command: Callable[..., Ended]
) -> None:
    first, second = (make_version(place.library, place.data_dir, seed) for seed in (1, 2))
    registry = ModelRegistry(place.library)
    at = ("--data_dir", place.data_dir)
    ended = command("promote", first.model.version, *at)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == (
        f"{first.model.version} is the champion of technical in run aaaaaaaaaaaa now; before: the rules"
    )
    assert ended.stdout.splitlines()[1] == (
        f"note: the gate's verdict on it is reject; show {first.model.version} has its reasons"
    )
    assert "a daemon that runs follows at its next check" in ended.stdout
    ended = command("promote", second.model.version, *at, "--reason", "it looks better to me")
    assert f"before: {first.model.version}" in ended.stdout
    champion, previous = (registry.holder("technical", alias) for alias in ("champion", "previous"))
    assert champion is not None
    assert previous is not None
    assert (champion.version, previous.version) == (second.model.version, first.model.version)
    move = registry.events("technical")[-1]
    assert move.reason == "it looks better to me"
    assert move.as_of == CUTOFF  # of the replay's Clock: what it has reached
    assert "it looks better to me" in (second.folder / model_card.CARD_MD).read_text()
    assert_refused(command("promote", second.model.version, *at), "is the champion of technical", "already")
    ended = command("rollback", "technical", *at, "--reason", "it is not")
    assert ended.stdout.splitlines()[0] == (
        f"{second.model.version} no longer serves technical in run aaaaaaaaaaaa; {first.model.version} will"
    )
    ended = command("rollback", "technical", *at)
    assert "the rules will" in ended.stdout
    assert registry.holder("technical", "champion") is None
    assert_refused(command("rollback", "technical", *at), "technical has no champion", "the rules serve already")


def test_the_trial_of_a_challenger_is_ended_by_hand(place: Place, command: Callable[..., Ended]) -> None:
    champion, challenger = (make_version(place.library, place.data_dir, seed) for seed in (1, 2))
    promote(place.library, champion)
    registry = ModelRegistry(place.library)
    with place.library.connection() as connection, connection.cursor() as cursor:
        registry.challenge(cursor, challenger.model, CUTOFF, "the gate")
    at = ("--data_dir", place.data_dir)
    ended = command("rollback", "technical", "--challenger", *at, "--reason", "its bytes are gone")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"{challenger.model.version} is no longer on trial for technical")
    held = registry.held_by("technical")
    assert {alias: found.model.version for alias, found in held.items()} == {"champion": champion.model.version}
    assert registry.events("technical")[-1].reason == "its bytes are gone"
    assert_refused(command("rollback", "technical", "--challenger", *at), "technical has no challenger")


def test_promote_refuses_what_cannot_serve(place: Place, command: Callable[..., Ended]) -> None:
    at = ("--data_dir", place.data_dir)
    foreign = make_version(place.library, place.data_dir, 1, base_model="org/other-base")
    damaged, gone = (make_version(place.library, place.data_dir, seed) for seed in (2, 3))
    with (damaged.model.path / "adapter_model.safetensors").open("r+b") as weights:
        weights.write(b"x")
    gone.model.path.rename(gone.folder / "moved")
    assert_refused(
        command("promote", foreign.model.version, *at), "org/other-base", "learning.base_model", "builtin:tiny"
    )
    assert_refused(command("promote", damaged.model.version, *at), "does not match its manifest", "adapter_model")
    assert_refused(command("promote", gone.model.version, *at), "no longer stored")
    assert_refused(command("promote", "technical@nothing", *at), "there is no version")
    assert ModelRegistry(place.library).events() == []


def test_promote_refuses_what_knows_more_than_the_run_and_what_would_be_withdrawn_as_too_old(
    place: Place, command: Callable[..., Ended], tmp_path: Path
) -> None:
    at = ("--data_dir", place.data_dir)
    present = datetime(2015, 6, 1, 21, tzinfo=UTC)
    promote(place.library, make_version(place.library, place.data_dir, 1, agent="news"), present)
    later, old, fresh = (
        make_version(place.library, place.data_dir, seed, cutoff=present + timedelta(days=days), started_at=CUTOFF)
        for seed, days in ((2, 1), (3, -366), (4, 0))
    )
    assert_refused(
        command("promote", later.model.version, *at),
        "data until 2015-06-02T21:00:00Z", "has reached 2015-06-01T21:00:00Z only", "list shows it",
    )  # fmt: skip
    assert_refused(
        command("promote", old.model.version, *at),
        "data until 2014-05-31T21:00:00Z", "2015-06-01T21:00:00Z", "raise that, or train anew",
        "learning.max_model_age_days, 365",
    )  # fmt: skip
    assert [event.agent_type for event in ModelRegistry(place.library).events()] == ["news"]
    settings = tmp_path / "system.yaml"
    settings.write_text("learning: {max_model_age_days: 400}\n")
    assert command("promote", old.model.version, *at, "--config", settings).returncode == 0
    ended = command("promote", fresh.model.version, *at)
    assert ended.returncode == 0, ended.stderr
    with place.library.connection() as connection:
        connection.execute("UPDATE training_runs SET data_cutoff = NULL")
    assert "neither look-ahead nor age was checked" in command("promote", old.model.version, *at).stdout


def test_promote_compares_the_content_of_the_base_model_where_it_is_there_and_says_so_where_it_is_not(
    place: Place, command: Callable[..., Ended], tmp_path: Path
) -> None:
    at = ("--data_dir", place.data_dir)
    not_there, other, own = (make_version(place.library, place.data_dir, seed) for seed in (1, 2, 3))
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    in_folder = make_version(place.library, place.data_dir, 4, base_model=str(folder))
    settings = tmp_path / "system.yaml"
    settings.write_text(f"learning: {{base_model: {folder}}}\n")

    def trained_on(made: Made, digest: str, base_dir: Path) -> None:
        with place.library.connection() as connection:
            connection.execute(
                "UPDATE model_versions SET base_revision = %s, base_dir = %s WHERE version = %s",
                (digest, str(base_dir), made.model.version),
            )

    ended = command("promote", not_there.model.version, *at)
    assert ended.returncode == 0, ended.stderr
    assert (
        "note: the content of the base model was not compared: this machine does not have builtin:tiny" in ended.stdout
    )
    trained_on(other, "c" * 64, place.data_dir / "models" / "base" / "tiny-0123456789ab")
    assert_refused(command("promote", other.model.version, *at), "'builtin:tiny' of other content", "cccccccccccc")
    cached = place.data_dir / "models" / "base" / Recipe().folder_name()
    cached.mkdir(parents=True)
    (cached / "model.safetensors").write_bytes(b"weights")
    trained_on(own, seal(cached).digest, cached)
    trained_on(other, "c" * 64, cached)
    assert_refused(command("promote", other.model.version, *at), "'builtin:tiny' of other content", "train anew")
    ended = command("promote", own.model.version, *at)
    assert ended.returncode == 0, ended.stderr
    assert "not compared" not in ended.stdout
    assert_refused(
        command("promote", in_folder.model.version, *at, "--config", settings), str(folder), "of other content"
    )
    trained_on(in_folder, folder_digest(folder)[1], folder)
    ended = command("promote", in_folder.model.version, *at, "--config", settings)
    assert ended.returncode == 0, ended.stderr
    assert "not compared" not in ended.stdout
    settings.write_text("local: {server_url: 'http://127.0.0.1:1/v1'}\n")
    ended = command("promote", other.model.version, *at, "--config", settings)
    assert "the server at local.server_url has it" in ended.stdout


def test_a_rollback_past_a_damaged_previous_version_ends_with_the_rules(
    place: Place, command: Callable[..., Ended]
) -> None:
    first, second = (make_version(place.library, place.data_dir, seed) for seed in (1, 2))
    for made in (first, second):
        promote(place.library, made)
    (first.model.path / "adapter_model.safetensors").write_bytes(b"x")
    ended = command("rollback", "technical", "--data_dir", place.data_dir)
    assert ended.returncode == 0, ended.stderr
    assert "the rules will" in ended.stdout
    assert f"{first.model.version} was previous and cannot serve" in ended.stdout


def test_a_rollback_past_a_previous_version_on_another_base_model_ends_with_the_rules(
    place: Place, command: Callable[..., Ended], tmp_path: Path
) -> None:
    first, second = (make_version(place.library, place.data_dir, seed) for seed in (1, 2))
    for made in (first, second):
        promote(place.library, made)
    settings = tmp_path / "system.yaml"
    settings.write_text("learning: {base_model: other/model}\n")
    ended = command("rollback", "technical", "--data_dir", place.data_dir, "--config", settings)
    assert ended.returncode == 0, ended.stderr
    assert "the rules will" in ended.stdout
    assert (
        f"{first.model.version} was previous and cannot serve: {first.model.version} lies on the base model "
        f"{first.model.base_model!r}, and learning.base_model is 'other/model'"
    ) in ended.stdout
    assert ModelRegistry(place.library).held_by("technical") == {}


def test_a_configuration_that_lets_others_serve_is_told_and_so_is_another_mode(
    place: Place, command: Callable[..., Ended], tmp_path: Path
) -> None:
    made = make_version(place.library, place.data_dir, 1)
    settings = tmp_path / "system.yaml"
    settings.write_text("agents: {technical: {policy: rules}}\nlearning: {max_model_age_days: null}\n")
    with place.library.connection() as connection:
        connection.execute("UPDATE runs SET mode = 'live' WHERE run_id = %s", (OLD_RUN,))
    ended = command("promote", made.model.version, "--data_dir", place.data_dir, "--config", settings)
    assert ended.returncode == 0, ended.stderr
    assert "served by rules" in ended.stdout
    assert "trained in the replay run aaaaaaaaaaaa, and this run is live" in ended.stdout
    with place.library.connection() as connection:
        row: Any = connection.execute("SELECT as_of FROM alias_events WHERE run_id = %s", (OLD_RUN,)).fetchone()
    assert datetime.now(UTC) - row[0] < timedelta(minutes=2)


def test_wrong_places_runs_and_agents_are_refused_without_creating_anything(
    place: Place, command: Callable[..., Ended], tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    assert_refused(command("list", "--data_dir", nowhere), "data_dir", "no database below", "nowhere")
    assert not nowhere.exists()
    assert_refused(command("list", "--data_dir", place.data_dir, "--run", "zz"), "run: 'zz'", "no such run")
    assert_refused(command("list", "--config", tmp_path / "absent.yaml"), "absent.yaml")
    wrong = command("rollback", "techncal", "--data_dir", place.data_dir)
    assert wrong.returncode == 2
    assert "'techncal'" in wrong.stderr
    assert command("--data_dir", place.data_dir).returncode == 2


def test_a_database_that_is_away_has_an_exit_code_of_its_own(command: Callable[..., Ended], tmp_path: Path) -> None:
    settings = tmp_path / "system.yaml"
    settings.write_text("database_url: postgresql://postgres:x@127.0.0.1:1/nothing\n")
    ended = command("list", "--config", settings)
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.startswith("error: ")
