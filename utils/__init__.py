"""Shared kernel: domain schema, clock, settings, identities, errors. Imports nothing else of this project."""
