"""``python -m training.sft``: one fine-tuning by hand; see `training.pipelines.by_hand`."""

from __future__ import annotations

import sys

from training.pipelines.by_hand import main

if __name__ == "__main__":
    sys.exit(main("sft"))
