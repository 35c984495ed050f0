"""Mixed models: refusal to compare embeddings whose stores name different weights or preprocessing.

A description of embeddings is a mapping with their folder, `path`, and the contents of the store's meta.json, if any.
"""

import json
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from facelt.errors import UserError
from facelt.utils.text import shorten

# Longest value of a fact that an error or a note quotes.
_MAX_VALUE = 40


def mixed_model_notes(descriptions: Mapping[str, Mapping[str, Any] | None], *, allow_mixed: bool) -> list[str]:
    """Returns the report's notes on embeddings that are compared with each other, so one model should have made all.

    `descriptions` are by role, such as `gallery`; None is skipped. Two of them are compared by the SHA-256 of the
    weights and by the preprocessing, as far as both state these; one note names what only some of them state. Raises
    UserError naming both folders and what differs, unless `allow_mixed` makes it a note.
    """
    facts = {role: _model_facts(described) for role, described in descriptions.items() if described is not None}
    names = {role: f"{descriptions[role]['path']} ({role})" for role in facts}
    notes = []
    for first, second in combinations(facts, 2):
        if not (differences := _differences(facts[second], facts[first])):
            continue
        text = f"{names[second]} and {names[first]} differ in {'; '.join(differences)}"
        if not allow_mixed:
            raise UserError(
                f"{text}. Scores between them mean nothing: embed both with one model and one preprocessing, or keep "
                "both with --allow-mixed-models"
            )
        notes.append(f"{text}. Scores between them mean nothing unless the models share one embedding space.")
    stated = {name for known in facts.values() for name in known}
    unstated = [
        f"{names[role]} does not state {', '.join(missing)}"
        for role in facts
        if (missing := _missing(facts[role], stated))
    ]
    if unstated:
        notes.append(f"It is not known that one model made all embeddings: {'; '.join(unstated)}.")
    return notes


def _model_facts(description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts that embeddings must share to be comparable, by name."""
    model, preprocessing = description.get("model"), description.get("preprocessing")
    weights = model.get("weights_sha256") if isinstance(model, Mapping) else None
    facts = {} if weights is None else {"weights": weights}
    if isinstance(preprocessing, Mapping):
        return facts | {f"preprocessing.{name}": value for name, value in preprocessing.items()}
    return facts if preprocessing is None else facts | {"preprocessing": preprocessing}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} ({_quoted(value)} and {_quoted(second[name])})"
        for name, value in first.items()
        if name in second and second[name] != value
    ]


def _missing(facts: Mapping[str, Any], stated: set[str]) -> list[str]:
    """Returns the stated facts that are missing; `preprocessing` if none of it is there."""
    missing = stated - facts.keys()
    if not any(name.startswith("preprocessing") for name in facts):
        missing = {name.partition(".")[0] for name in missing}
    return sorted(missing)


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    # The first digits of a digest suffice.
    return text[:12] if len(text) == 64 and text.isalnum() else shorten(text, _MAX_VALUE)
