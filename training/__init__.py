"""From experiences to a better adapter: datasets, training runs, gate, registry, learning loop."""
