"""Minimal settings of a stage for each method."""

from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "reslt": {"starts": [1, 2]},
    "fslwf": {"novel_below": 6},
    "model_regression": {"levels": 2},
    "meta_model_net": {"levels": 2},
    "semi_siamese": {"queue": 4},
}
# The recipe has five identities, and a batch of this method has as many at most.
OPTIMS: dict[str, dict[str, Any]] = {"semi_siamese": {"lr": 0.05, "batch": 4}}
BRANCHES: dict[str, dict[str, Any]] = {
    "bbn": {"count": 2, "split": "last_block"},
    "reslt": {"count": 3, "split": "batch_norm"},
    "ride": {"count": 3, "split": "layer2"},
    "ride_router": {"count": 3, "split": "layer2"},
    "independent": {"count": 2, "split": "none"},
    "balpoe": {"count": 3, "split": "layer2"},
    "sade": {"count": 3, "split": "layer2"},
}
# The head of the stage that methods on a trained model start from.
STARTS = {"lws": "linear", "tau_norm": "linear", "ncm": "linear", "fusion": "linear", "logit_adjustment": "linear"}
STARTS |= {"fusion_llw": "linear", "fusion_asm": "linear", "fslwf": "cosine"}
STARTS |= {"model_regression": "linear", "meta_model_net": "linear"}
WITHOUT_STEPS = {"tau_norm", "ncm", "fusion", "logit_adjustment"}


def stages(method: str) -> list[dict[str, Any]]:
    """Stages of one epoch or none; the last one, `only`, is the method's."""
    only = {"name": "only", "method": {"name": method, **OPTIONS.get(method, {})}, "epochs": 1}
    only |= {"branches": BRANCHES.get(method), "optim": OPTIMS.get(method)}
    if method == "lfme":
        # The recipe's classes are all of few shots.
        expert = {"name": "expert", "method": {"name": "classify", "shots": "few"}, "epochs": 1}
        return [expert, {**only, "teachers": ["expert"]}]
    if method not in STARTS:
        return [only]
    plain = {"name": "plain", "method": {"name": "classify", "head": STARTS[method]}, "epochs": 1}
    return [plain, {**only, "init_from": "plain", "epochs": int(method not in WITHOUT_STEPS)}]
