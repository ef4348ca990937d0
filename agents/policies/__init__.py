"""How an agent thinks: rules, a local model with an adapter, or a hosted model, behind one seam."""
