"""Who decides which agents look at a symbol."""
