"""What becomes of a model's verdict when it is carried out: the strategist's side stands only where a portfolio allows it.

Rewards and the gate judge a verdict by it, so that a model gains nothing by sides that nobody could take. A reading of the
state's text, which rounds: less than 1 % held reads as nothing, less than 5 % of cash as none.
"""

from __future__ import annotations

from agents.policies.local.states import state_values
from agents.policies.rules.strategist import LEAST_CONFIDENCE
from utils.schema import direction


def executable(agent_type: str, state_text: str, recommendation: str, confidence: float) -> str:
    """Return the recommendation that a verdict becomes: that itself, or hold.

    A strategist's side is a hold below the least confidence, a sale where nothing is held and a purchase without cash;
    what a state does not say is allowed. The other agents only advise, and nothing of theirs is refused.
    """
    side = direction(recommendation)
    if agent_type != "strategist" or side == 0:
        return recommendation
    stated = state_values(state_text)
    if confidence < LEAST_CONFIDENCE:
        return "hold"
    if side < 0 and float(stated.get("held", 1)) == 0:
        return "hold"
    if side > 0 and float(stated.get("cash", 1)) + float(stated.get("held", 0)) == 0:
        return "hold"
    return recommendation
