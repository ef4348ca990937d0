"""Prints schema.sql."""

import sys

from data_pipeline.library.migrations import schema_sql

sys.stdout.write(schema_sql())
