"""How good was the reasoning, and what is it worth: judges, consensus, rewards."""
