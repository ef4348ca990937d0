"""What the training children share: their line to the launcher, checkpoints, the sealed adapter, the examination."""
