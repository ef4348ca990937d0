"""Conflicts between agents: how they are found and resolved. Pure; `orchestration.conflict_resolution` is the door."""
