"""A training child that trains nothing: it answers the held-out states by a rule and seals a few bytes as its adapter.

``python standin_child.py JOB ANSWERS``, where ANSWERS is skill (buy above an RSI of 50, else sell), none (always buy),
blocked (the base model is missing) or failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from agents.policies.local.decisions import cited_evidence, encode_decision
from agents.policies.local.states import state_values
from training.child import session
from training.launcher import BLOCKED
from utils.artifacts import seal


def main(job_path: str, answers: str) -> int:
    job = json.loads(Path(job_path).read_text())
    if answers == "blocked":
        sys.stderr.write("base model 'absent' has no *.safetensors weights\n")
        return BLOCKED
    if answers == "failed":
        return session.STOPPED - 1
    output = Path(job["output_dir"])
    adapter = output / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_model.safetensors").write_bytes(f"{answers} {job['job_id']}".encode() * 500)
    digest = seal(adapter, {"base_sha256": "b" * 64}).digest
    (output / "work").mkdir(exist_ok=True)
    lines = []
    for row in map(json.loads, Path(job["holdout"]).read_text().splitlines()):
        state = row["messages"][-1]["content"]
        rising = answers == "none" or float(state_values(state)["rsi"]) >= 50
        text = encode_decision("buy" if rising else "sell", 0.7, cited_evidence(job["agent_type"], state))
        lines.append(json.dumps({"key": row["key"], "text": text}) + "\n")
    predictions = output / "predictions.jsonl"
    predictions.write_text("".join(lines))
    result = {
        "job_id": job["job_id"], "base_model": job["base_model"], "base_dir": str(output), "base_sha256": "b" * 64,
        "adapter_dir": str(adapter), "adapter_sha256": digest, "prompt_sha256": "p" * 64, "predictions": str(predictions),
        "metrics": {"first_loss": 2.0, "final_loss": 1.0, "steps": 3},
    }  # fmt: skip
    (output / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
