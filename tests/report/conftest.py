"""A small report of schema `facelt.megaface/1` with distinct numbers."""

import copy

import pytest


def figure(name, group, rate, pairs, half=0.05):
    ends = (None, None) if rate is None else (round(rate - half, 4), round(rate + half, 4))
    probes, identities = (0, 0) if rate is None else (pairs // 10, pairs // 100)
    return {
        "name": name, "group": group, "rate": rate, "low": ends[0], "high": ends[1],
        "pairs": pairs, "probes": probes, "identities": identities,
    }  # fmt: skip


def row(model, kind, gain):
    figures = [
        figure("full", "all", 0.8302 + gain, 26202),
        figure("many", "shots", None, 0),
        figure("few", "shots", 0.6932 + gain, 880),
        figure("one", "shots", 0.7511 + gain, 1000),
        figure("zero", "shots", 0.8307 + gain, 24322),
        figure("male", "gender", 0.8712 + gain, 13860),
        figure("female", "gender", 0.7842 + gain, 12342),
        figure("under 40", "age", 0.81 + gain, 6100),
    ]
    return {"model": model, "kind": kind, "rank": 1, "distractors": 6732, "figures": figures}


_SERIES = (("plain", "direct", 0.0), ("oltr", "direct", 0.01), ("oltr", "meta", 0.02))
_REPORT = {
    "schema": "facelt.megaface/1",
    "title": "Plain and OLTR",
    "notes": ["Synthetic faces."],
    "suite": {
        "probes": 607, "identities": 14, "pairs": 26202, "distractors": 6732, "sizes": [10, 1000, 6757], "sets": [1],
        "noise": {"mode": "drop", "probes_removed": 7, "distractors_removed": 25, "probes_replaced": 0},
        "files": {"facescrub_features_list.json": "ab" * 32},
    },
    "shots": {
        "threshold": 0.7, "reference": "each model's own direct",
        "bands": {"many": ">= 5", "few": "2..4", "one": "1", "zero": "0"},
    },
    "interval": {"level": 0.95, "method": "jackknife over identities"},
    "rows": [row(*entry) for entry in _SERIES],
    "curves": [
        {
            "model": model, "kind": kind, "rank": 1, "sizes": [10, 1000, 6757],
            "rate": [0.97 + gain, 0.91 + gain, 0.83 + gain], "low": [0.95, 0.88, None], "high": [0.99, 0.95, None],
        }
        for model, kind, gain in _SERIES
    ],
    "cmc": [
        {
            "model": model, "kind": kind, "distractors": 6732, "ranks": list(range(1, 21)),
            "rate": [0.83 + gain + rank / 200 for rank in range(20)],
        }
        for model, kind, gain in _SERIES
    ],
    "models": {"plain": {"sha256": "cd" * 32}, "oltr": {"sha256": "ef" * 32, "kinds": ["direct", "meta"]}},
}  # fmt: skip


@pytest.fixture
def report():
    return copy.deepcopy(_REPORT)


def _difference(name, group, rate, half, adjusted_p):
    ends = (None, None) if half is None else (round(rate - half, 4), round(rate + half, 4))
    reference_rate = 0.8 if adjusted_p is not None else None
    return {
        "name": name, "group": group, "reference_rate": reference_rate,
        "rate": None if reference_rate is None else 0.8 + rate, "difference": rate, "low": ends[0], "high": ends[1],
        "pairs": 26202 if adjusted_p is not None else 0, "identities": 14, "p": adjusted_p, "adjusted_p": adjusted_p,
        "adjusted_low": ends[0], "adjusted_high": ends[1], "smallest_p": None if adjusted_p is None else 0.001,
        "decided": half is not None and half < abs(rate) and adjusted_p < 0.05,
    }  # fmt: skip


@pytest.fixture
def compared(report):
    """The report with a comparison: `oltr direct` decided above the reference, `oltr meta` undecided below it."""
    rows = [
        ("direct", 0.0382, 0.0261, 0.0121, "oltr direct is 3.8 points above plain direct at rank 1"),
        ("meta", -0.0062, 0.0152, 0.43, "oltr meta is 0.6 points below plain direct at rank 1: undecided"),
    ]
    report["comparison"] = {
        "reference": "plain", "kind": "direct", "shots": "plain", "tests": 14,
        "rows": [
            {
                "model": "oltr", "kind": kind, "rank": 1, "distractors": 6732,
                "figures": [
                    _difference("full", "all", rate, half, p), _difference("many", "shots", None, None, None),
                    _difference("few", "shots", rate / 2, 0.1234, 1.0), _difference("male", "gender", 0.0, 0.02, 1.0),
                    _difference("female", "gender", 0.25, None, 0.5),
                    _difference("under 40", "age", 0.071, 0.01, 0.001),
                ],
                "sentence": sentence,
            }
            for kind, rate, half, p, sentence in rows
        ],
    }  # fmt: skip
    return report


@pytest.fixture
def hostile(report):
    """The same report with hostile text in every name that comes from data."""
    script, formula = '<script>alert("x")</script>', "=cmd()|'/c calc'!A1"
    odd = "$\\frac{$ [red]&amp;\x1b[31m\x00\ud800"
    names = {"plain": script, "oltr": formula}
    report |= {"title": script, "notes": [script + odd]}
    for part in (*report["rows"], *report["curves"], *report["cmc"]):
        part["model"] = names[part["model"]]
        part["kind"] = part["kind"] + odd
    for entry in report["rows"]:
        entry["figures"][-1] |= {"group": script, "name": formula}
        entry["figures"].append({**entry["figures"][-1], "name": odd + script})
    report["models"] = {script: {script: [script]}, formula: {"deep": {"deeper": script}}}
    report["suite"]["files"] = {script: formula}
    report["shots"]["reference"] = script
    return report
