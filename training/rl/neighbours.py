"""What each example of reinforcement learning is rewarded by: its own outcome and those of the states most like it.

Called by the child before training. The data set stays what came true; only the reward looks at more than one outcome.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.rl.job import Outcome, RLExample
from training.similar_states import nearest


def pooled_outcomes(
    agent_type: str, examples: Sequence[RLExample], numbers: Sequence[int], neighbours: int
) -> dict[int, tuple[Outcome, ...]]:
    """Return by number the outcomes of an example and its neighbours, each with its share of the weight.

    A k-nearest-neighbour estimate of what a decision on such a state is worth; see `similar_states.nearest`.
    """
    states = [example.state_text for example in examples]
    pooled = {}
    for number, found in nearest(agent_type, states, sorted(set(numbers)), neighbours):
        pooled[number] = tuple(
            outcome.model_copy(update={"weight": outcome.weight / len(found)})
            for other in found
            for outcome in examples[other].outcomes
        )
    return pooled
