"""Supervised fine-tuning of a junior on decisions that came true: the job, and the child process that does it."""
