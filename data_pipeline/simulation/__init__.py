"""A generated market whose regimes, switch points and predictable parts are known: for mechanics, tests and calibration.

`Scenario` states what is planted, `generate` makes the market, the feed and the export hand it on. Figures measured on it
show that a mechanism works; they say nothing about real shares and are never called performance.
"""
