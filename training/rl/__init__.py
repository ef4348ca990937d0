"""Reinforcement learning of a local model on what its decisions were worth: the job, the rewards, the child process."""
