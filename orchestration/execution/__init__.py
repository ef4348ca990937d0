"""From a decision to money: risk gates, paper broker, portfolio as the fold of its log, outcomes."""
