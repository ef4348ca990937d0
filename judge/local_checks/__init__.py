"""What the local judge checks, one module an agent: small pure functions in a table by dimension of the rubric."""
