"""Plants known faults in sound outputs and measures what a detector finds of them: category, pointer, false alarms.

The operators follow the written rule of each category and how language models and data pipelines go wrong; they know of
no detector. `registry.OPERATORS` lists them, `harness.evaluate` measures. Outputs to damage come from whoever has agents.
"""

from evaluation.fault_injection.harness import evaluate
from evaluation.fault_injection.model import ABSENT, Case, Mutant, Operator, Sample
from evaluation.fault_injection.registry import CATEGORIES, JUDGE_ONLY, JUDGE_PARTS, OPERATORS
from evaluation.fault_injection.scores import CategoryScore, TaxonomyMeasurement

__all__ = [
    "ABSENT",
    "CATEGORIES",
    "JUDGE_ONLY",
    "JUDGE_PARTS",
    "OPERATORS",
    "Case",
    "CategoryScore",
    "Mutant",
    "Operator",
    "Sample",
    "TaxonomyMeasurement",
    "evaluate",
]
