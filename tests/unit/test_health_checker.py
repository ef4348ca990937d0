"""Health is asked, not remembered: alerts at the threshold, told once, and told again on recovery."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from monitoring.health_checker import HealthChecker, HealthStatus
from utils.errors import LibraryUnavailable


class Part:
    """A component whose health the test decides."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.asked = 0

    def __call__(self) -> str | None:
        self.asked += 1
        return self.trouble


@pytest.fixture
def part() -> Part:
    return Part()


def checker(part: Callable[[], str | None], threshold: int = 3) -> tuple[HealthChecker, list[HealthStatus]]:
    made = HealthChecker(check_interval=3600, alert_threshold=threshold)
    alerts: list[HealthStatus] = []
    made.add_alert_callback(alerts.append)
    made.start({"part": part})
    return made, alerts


def test_the_first_round_is_done_when_start_returns(part) -> None:
    part.trouble = "it is broken"
    made, _ = checker(part)
    assert made.get_health_status() == {"part": HealthStatus("part", False, "it is broken", 1)}
    made.stop()


def test_an_alert_comes_at_the_threshold_and_once(part) -> None:
    made, alerts = checker(part)
    part.trouble = "away"
    for expected in (0, 0, 1, 1, 1):
        made.check_now()
        assert len(alerts) == expected
    assert alerts[0] == HealthStatus("part", False, "away", 3)
    made.stop()


def test_recovery_after_an_alert_is_told_and_without_one_is_not(part) -> None:
    made, alerts = checker(part, threshold=2)
    part.trouble = "blip"
    made.check_now()
    part.trouble = None
    made.check_now()
    assert alerts == []
    part.trouble = "away"
    for _ in range(4):
        made.check_now()
    part.trouble = None
    made.check_now()
    made.check_now()
    assert [alert.healthy for alert in alerts] == [False, True]
    made.stop()


def test_a_second_outage_alerts_again(part) -> None:
    made, alerts = checker(part, threshold=1)
    for trouble in ("one", None, "two", None):
        part.trouble = trouble
        made.check_now()
    assert [alert.detail for alert in alerts] == ["one", None, "two", None]
    made.stop()


def test_a_fault_that_a_check_raises_is_what_is_wrong() -> None:
    def check() -> str | None:
        raise LibraryUnavailable("the database does not answer")

    made, _ = checker(check)
    assert made.get_health_status()["part"].detail == "the database does not answer"
    made.stop()


def test_a_check_that_itself_breaks_is_ill_and_the_others_are_still_asked(part) -> None:
    def broken() -> str | None:
        raise ZeroDivisionError("division by zero")

    made = HealthChecker(check_interval=3600)
    made.start({"broken": broken, "part": part})
    status = made.get_health_status()
    assert not status["broken"].healthy
    assert "division by zero" in str(status["broken"].detail)
    assert status["part"].healthy
    made.stop()


def test_system_health_says_who_is_ill_and_what_the_machine_has_left(part) -> None:
    part.trouble = "away"
    made = HealthChecker(check_interval=3600)
    made.start({"part": part, "other": lambda: None})
    health = made.get_system_health()
    assert health["overall_healthy"] is False
    assert health["unhealthy_components"] == ["part"]
    assert (health["component_count"], health["healthy_count"]) == (2, 1)
    resources = health["system_resources"]
    assert set(resources) == {"cpu_percent", "memory_percent", "memory_available_gb", "disk_percent", "disk_free_gb"}
    assert 0 <= resources["memory_percent"] <= 100
    assert resources["disk_free_gb"] > 0
    made.stop()


def test_without_components_all_is_well() -> None:
    made = HealthChecker()
    assert made.get_system_health()["overall_healthy"] is True
    assert made.get_system_health()["component_count"] == 0


def test_a_data_directory_that_does_not_exist_yet_is_no_trouble(tmp_path) -> None:
    assert HealthChecker(data_dir=tmp_path / "later").get_system_health()["system_resources"]["disk_free_gb"] > 0


def test_rounds_go_on_by_themselves_until_stopped() -> None:
    asked = threading.Semaphore(0)

    def check() -> str | None:
        asked.release()
        return None

    made = HealthChecker(check_interval=0.005)
    made.start({"part": check})
    for _ in range(4):
        assert asked.acquire(timeout=5)
    made.stop()
    made.stop()
    while asked.acquire(blocking=False):
        pass
    assert not asked.acquire(timeout=0.05)


def test_a_stopped_checker_can_be_started_again(part) -> None:
    made, _ = checker(part)
    made.stop()
    made.start({"part": part})
    assert part.asked == 2
    made.stop()
