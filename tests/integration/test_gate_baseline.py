"""What a candidate is measured by where no version serves: never a version that was withdrawn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from trial_lab import SYMBOLS, add_version, decide, decided

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from training.pipelines.baseline import configured_calls, why_incomparable

pytestmark = pytest.mark.timeout(120)

FALLEN, BASE = "local:technical@a", "local:tiny@0123"


@pytest.fixture
def library(fresh_database: str) -> Iterator[ExperienceLibraryPostgres]:
    opened = ExperienceLibraryPostgres(dsn=fresh_database)
    yield opened
    opened.close()


def sides(library: ExperienceLibraryPostgres) -> dict[str, str]:
    """Return the recommendation that counts by trajectory."""
    rows = library.get_matured_trajectories("technical", as_of=decided(100))
    return {name: call.recommendation for name, call in configured_calls(library, "technical", rows).items()}


def test_decisions_of_a_withdrawn_version_count_as_what_the_configured_policy_said_in_its_shadow(
    library: ExperienceLibraryPostgres,
) -> None:
    add_version(library, "technical@a")
    decide(library, range(3), ("rules", True))
    decide(library, range(3, 5), (FALLEN, False), ("rules", True))
    found = sides(library)
    assert len(found) == 5 * len(SYMBOLS)
    assert set(found.values()) == {"buy"}


def test_they_do_not_count_where_it_said_nothing_or_only_another_version_did(
    library: ExperienceLibraryPostgres,
) -> None:
    add_version(library, "technical@a")
    add_version(library, "technical@b")
    decide(library, range(2), (FALLEN, False), ("local:technical@b", True))
    decide(library, range(2, 4), (FALLEN, False), ("rules", True), abstained=True, recommendation=None)
    decide(library, range(4, 5), (FALLEN, False))
    assert sides(library) == {}


def test_a_base_model_that_is_the_configured_policy_counts_for_itself(library: ExperienceLibraryPostgres) -> None:
    add_version(library, "technical@a")
    decide(library, range(2), (BASE, False))
    found = sides(library)
    assert len(found) == 2 * len(SYMBOLS)
    assert set(found.values()) == {"sell"}


def test_no_training_begins_while_what_was_held_out_is_mostly_a_withdrawn_versions(
    library: ExperienceLibraryPostgres,
) -> None:
    add_version(library, "technical@a")
    decide(library, range(3), ("rules", True))
    decide(library, range(3, 8), (FALLEN, False))
    rows = library.get_matured_trajectories("technical", as_of=decided(100))
    assert why_incomparable(library, "technical", rows, 3, 3 * len(SYMBOLS)) is None
    why = why_incomparable(library, "technical", rows, 4, 3 * len(SYMBOLS))
    assert why is not None
    assert f"all but {3 * len(SYMBOLS)} on 3 sessions" in why
    decide(library, range(8, 9), ("rules", True))
    rows = library.get_matured_trajectories("technical", as_of=decided(100))
    assert why_incomparable(library, "technical", rows, 4, 3 * len(SYMBOLS)) is None
