"""Policies of quantitative analysts: fast, deterministic, free; the first champions and everybody's fallback."""

from agents.policies.rules.fundamental import RulesFundamental
from agents.policies.rules.news import RulesNews
from agents.policies.rules.strategist import RulesStrategist
from agents.policies.rules.technical import RulesTechnical

__all__ = ["RulesFundamental", "RulesNews", "RulesStrategist", "RulesTechnical"]
