"""A linear classifier fitted to features that stand still.

N images, D feature, C classes, E = D + 1 weights of a class, the last one its bias.
"""

import torch
import torch.nn.functional as F

# Past gradients that a step of the solver looks back at.
HISTORY = 10


def softmax_regression(
    feature_ND: torch.Tensor, label_N: torch.Tensor, num_classes: int, *, decay: float, steps: int
) -> torch.Tensor:
    """Weights [C, E] that minimise cross-entropy + decay / 2 * |w|^2, in so many steps of L-BFGS from 0.

    Every class counts alike, however many images it has: the cross-entropy is the mean of the classes' means.
    """
    row_NE = with_one(feature_ND)
    count_C = torch.bincount(label_N, minlength=num_classes)
    share_N = 1 / (count_C[label_N] * (count_C > 0).sum())
    weight_CE = row_NE.new_zeros(num_classes, row_NE.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight_CE], max_iter=steps, history_size=HISTORY, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        term_N = F.cross_entropy(row_NE @ weight_CE.t(), label_N, reduction="none")
        value = (share_N * term_N).sum() + decay / 2 * weight_CE.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight_CE.detach()


def with_one(feature_ND: torch.Tensor) -> torch.Tensor:
    """Features with a 1 behind them, [N, E]."""
    return F.pad(feature_ND, (0, 1), value=1.0)
