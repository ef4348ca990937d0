"""One decision from snapshot to outcome: coordinator, execution, the trading cycle."""
