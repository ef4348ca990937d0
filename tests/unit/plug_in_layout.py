"""Lays out a policy plug-in as an installer leaves it, for tests that need one quickly or a broken one."""

from __future__ import annotations

from pathlib import Path

GROUP = "stock_agents.policies"
EXAMPLE = Path(__file__).parents[2] / "examples" / "policy_plugin"


def lay_out(site: Path, name: str, module: str, source: str, attribute: str = "policy") -> Path:
    """Write a module, and the metadata that an installer would write of its entry point, into a folder; return that."""
    metadata = site / f"{module}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{module}.py").write_text(source, encoding="utf-8")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:{attribute}\n", encoding="utf-8")
    return site
