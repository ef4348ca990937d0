"""Who looks at what, and how each thinks: juniors, strategist, supervisor, and the policies behind them."""
