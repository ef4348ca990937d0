"""The status page in a real browser, served by a real daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring.production_orchestrator import OrchestratorConfig, ProductionOrchestrator

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(180),
]


@pytest.fixture
def finished(data_dir: Path) -> Iterator[ProductionOrchestrator]:
    config = OrchestratorConfig(
        streaming_symbols=["AAPL", "MSFT"],
        feed="replay",
        replay_start="2012-11-01",
        replay_end="2013-03-01",
        data_dir=data_dir,
        metrics_port=0,
    )
    orchestrator = ProductionOrchestrator(config)
    orchestrator.start()
    assert orchestrator.finished.wait(120)
    yield orchestrator
    orchestrator.stop()


def rendered(port: int | None, profile: Path) -> str:
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--virtual-time-budget=5000", "--dump-dom", f"http://127.0.0.1:{port}/",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout


def test_a_person_sees_state_portfolio_components_and_what_learning_waits_for(
    finished: ProductionOrchestrator, tmp_path: Path
) -> None:
    dom = rendered(finished.metrics_port, tmp_path)
    text = re.sub(r"<[^>]+>", " ", dom.split("<main>")[1].split("<script>")[0])
    assert '<strong id="status" class="good">finished</strong>' in dom
    assert f"run {finished.run.run_id[:12]}" in dom  # type: ignore[union-attr]
    assert "82 of 82" in text  # sessions from 2012-11-01 to 2013-03-01
    assert "164" in text
    assert "2013-03-01 21:00 UTC" in text
    assert f"{finished.get_status()['portfolio']['equity']:,.2f}" in text
    assert re.search(r"experience library\s+running", text)
    assert re.search(r"technical\s+rules", text)
    assert "held-out" in text or "new successes" in text
    assert re.search(r"Health\s+well", text)
