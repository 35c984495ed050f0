"""How often intervals of 95% cover the truth, at 7, 14, 30 and 80 identities a group.

python benchmarks/coverage.py [--draws 2000] [--replicates 400] [--seed 0]

Prints, for each kind of interval, the mean over the worlds of `facelt.metrics.coverage` and the lowest of them: first
as rows of the table in docs/auditing.md, then as `facelt.metrics.coverage_table` holds them.
"""

import argparse

import numpy as np

from facelt.metrics.coverage import KINDS, PAIR_WORLDS, SEARCH_WORLDS, measure

IDENTITIES = (7, 14, 30, 80)


def main() -> None:
    """Measures all worlds at all numbers of identities and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    shares: dict[str, dict[int, list[float]]] = {kind: {n: [] for n in IDENTITIES} for kind in KINDS}
    for n in IDENTITIES:
        for w, world in enumerate((*SEARCH_WORLDS, *PAIR_WORLDS)):
            found = measure(
                world, n, draws=options.draws, seed=options.seed + 1000 * n + w, replicates=options.replicates
            )
            print(n, world, {kind: round(share, 4) for kind, share in found.items()}, flush=True)
            for kind, share in found.items():
                shares[kind][n].append(share)

    table = {
        kind: {n: (round(float(np.mean(of_n[n])), 4), round(min(of_n[n]), 4)) for n in IDENTITIES}
        for kind, of_n in shares.items()
    }
    print(f"\n| 95% interval of | {' | '.join(f'{n} identities' for n in IDENTITIES)} |")
    print("|---" * (len(IDENTITIES) + 1) + "|")
    for kind, row in table.items():
        cells = [f"{100 * mean:.1f} ({100 * lowest:.1f})" for mean, lowest in row.values()]
        print(f"| {KINDS[kind]} | {' | '.join(cells)} |")
    print()
    for kind, row in table.items():
        print(f'"{kind}": {row},')


if __name__ == "__main__":
    main()
