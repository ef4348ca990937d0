"""A policy of another package takes a seat by its entry point: the example as installed, and plug-ins that are broken."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from daemon_runner import ROOT, environment
from plug_in_layout import EXAMPLE, GROUP, lay_out

_PIP = "-m pip install --quiet --no-index --no-deps --no-build-isolation --disable-pip-version-check --target".split()

ANALYSIS = """
import json, sys
from orchestration.coordinator import Coordinator
coordinator = Coordinator(sys.argv[1])
print(json.dumps({"policies": coordinator.policies, "decision": coordinator.analyze_symbol("AAPL")}))
"""
SETTINGS = "streaming_symbols: [AAPL]\nreplay_start: 2012-01-03\nreplay_end: 2012-03-30\n"
BROKEN = {
    "raising": "def policy(agent_type, config, rules):\n    raise RuntimeError('the model file is gone')\n",
    "nonsense": "def policy(agent_type, config, rules):\n    return 42\n",
    "elsewhere": "from agents.policies.rules import RulesNews\n\n\ndef policy(agent_type, config, rules):\n    return RulesNews()\n",
}


def install_example(work: Path) -> Path:
    """Install the example into a folder of its own and return that; where there is no build backend, by hand."""
    site = work / "site"
    if not all(importlib.util.find_spec(name) for name in ("pip", "setuptools")):
        project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        ((name, target),) = project["entry-points"][GROUP].items()
        module, attribute = target.split(":")
        return lay_out(site, name, module, (EXAMPLE / f"{module}.py").read_text(encoding="utf-8"), attribute)
    source = shutil.copytree(EXAMPLE, work / "source")  # building leaves files beside what is built
    built = python(work, *_PIP, str(site), str(source))
    assert built.returncode == 0, built.stderr
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example installed and the broken plug-ins beside it."""
    found = install_example(tmp_path_factory.mktemp("example"))
    for name, source in BROKEN.items():
        lay_out(found, name, f"broken_{name}", source)
    return found


def configured(folder: Path, agents: str, more: str = "") -> Path:
    path = folder / "plugin.yaml"
    path.write_text(f"{SETTINGS}agents: {agents}\n{more}", encoding="utf-8")
    return path


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(site)),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def check(site: Path, config: Path) -> subprocess.CompletedProcess[str]:
    return python(site, "-m", "monitoring.production_orchestrator", "--check_config", "--config", str(config))


def assert_refused(ended: subprocess.CompletedProcess[str], words: Sequence[str]) -> None:
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    complaint = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(complaint) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in complaint[0]


@pytest.fixture(scope="module")
def served(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a coordinator in a fresh interpreter says of AAPL with the example in the technical seat."""
    config = configured(tmp_path_factory.mktemp("served"), "{policy: rules, technical: {policy: momentum}}")
    ended = python(site, "-c", ANALYSIS, str(config))
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def test_the_example_takes_its_seat_and_no_other(served: dict[str, Any]) -> None:
    policies = served["policies"]
    assert policies.pop("technical") == "momentum"
    assert set(policies.values()) == {"rules"}


def test_its_name_stands_with_the_opinion(served: dict[str, Any]) -> None:
    outputs = served["decision"]["agent_outputs"]
    technical = outputs.pop("technical")
    assert (technical["policy"], technical["abstained"]) == ("momentum", False)
    assert "momentum_of_a_year" in technical["signals"]
    assert {output["policy"] for output in outputs.values()} == {"rules"}
    assert served["decision"]["strategist_output"]["policy"] == "rules"


def test_its_opinion_stands_up_to_the_detectors(served: dict[str, Any]) -> None:
    assert [found for found in served["decision"]["findings"] if found["agent"] == "technical"] == []


def test_check_config_accepts_it(site: Path, tmp_path: Path) -> None:
    ended = check(site, configured(tmp_path, "{technical: {policy: momentum}}"))
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["agent_settings"]["technical"]["policy"] == "momentum"


REFUSED = {
    "an unknown name": (
        "{technical: {policy: momentun}}",
        ["agents.technical.policy", "'momentun'", "rules, local, anthropic", "raising", "did you mean 'momentum'?"],
    ),
    "a seat that the example cannot take": (
        "{news: {policy: momentum}}",
        ["policy 'momentum'", "failed for the news agent", "it thinks for the technical agent, not for news"],
    ),
    "one that raises": (
        "{technical: {policy: raising}}",
        ["policy 'raising'", "broken_raising:policy failed for the technical agent", "the model file is gone"],
    ),
    "one that returns nonsense": (
        "{technical: {policy: nonsense}}",
        ["policy 'nonsense'", "gave a int without agent_type, name", "decide_many"],
    ),
    "one of another agent": (
        "{technical: {policy: elsewhere}}",
        ["policy 'elsewhere'", "gave a policy of news to the technical agent"],
    ),
}


@pytest.mark.parametrize(("agents", "words"), REFUSED.values(), ids=[name.replace(" ", "_") for name in REFUSED])
def test_check_config_refuses_what_cannot_take_the_seat(
    site: Path, tmp_path: Path, agents: str, words: list[str]
) -> None:
    assert_refused(check(site, configured(tmp_path, agents)), words)


def test_without_the_package_its_name_is_unknown(tmp_path: Path) -> None:
    ended = check(tmp_path, configured(tmp_path, "{technical: {policy: momentum}}"))
    assert_refused(
        ended, ["'momentum' is no way to think; choose one of auto, rules, local, anthropic, openai, gemini"]
    )


def test_a_seat_that_is_left_empty_needs_no_plug_in(site: Path, tmp_path: Path) -> None:
    assert check(site, configured(tmp_path, "{technical: {policy: raising, enabled: false}}")).returncode == 0


def test_a_daemon_with_a_broken_plug_in_ends_before_anything_is_created(site: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, "{technical: {policy: raising}}", "metrics_port: 0\nexit_when_done: true\n")
    data = tmp_path / "data"
    ended = python(
        site, "-m", "monitoring.production_orchestrator", "--config", str(config), "--data_dir", str(data), "--enable_streaming"
    )  # fmt: skip
    assert_refused(ended, ["policy 'raising'", "the model file is gone"])
    assert not data.exists()
