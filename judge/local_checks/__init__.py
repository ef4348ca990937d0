"""What the local judge grades beyond errors, one module an agent: small pure functions in a table by dimension."""
