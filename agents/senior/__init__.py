"""The senior agent: the strategist, who turns the juniors' opinions into a decision."""
