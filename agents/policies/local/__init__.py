"""Thinking with a local language model: the language it is trained in, the engines that run it, the policy that asks it."""
