"""The ways of training, and what each takes of the options: the defaults are those of the papers."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodFacts:
    """What is known of a method before anything is read.

    takes      "texts"; "pairs" of a better and a worse answer; "judged" answers
    reference  whether the model without the adapter is part of the loss
    defaults   of the options that it takes, by field
    source     the paper
    """

    takes: str
    reference: bool
    defaults: dict[str, float]
    source: str


METHODS = {
    "sft": MethodFacts("texts", False, {}, ""),
    "dpo": MethodFacts("pairs", True, {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 0.0},
                       "Rafailov et al., 2023"),
    "ipo": MethodFacts("pairs", True, {"beta": 0.1, "sft_weight": 0.0}, "Azar et al., 2023"),
    "orpo": MethodFacts("pairs", False, {"beta": 0.1, "sft_weight": 1.0}, "Hong et al., 2024"),
    "simpo": MethodFacts("pairs", False, {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.0, "sft_weight": 0.0},
                         "Meng et al., 2024"),
    "cpo": MethodFacts("pairs", False, {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 1.0}, "Xu et al., 2024"),
    "kto": MethodFacts("judged", True, {"beta": 0.1}, "Ethayarajh et al., 2024"),
}
"""The facts of each method, by the name that --method has for it."""

METHOD_OPTIONS = ("beta", "label_smoothing", "gamma", "sft_weight")
"""Fields that only some methods take."""
