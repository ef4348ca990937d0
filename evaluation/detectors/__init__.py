"""What code can find wrong in an agent's output, one module an agent plus what all share; see `fault_localization`."""
