"""ResLT's loss: branches that answer for ever rarer classes, and their sum for all (Cui et al., TPAMI 2022).

K branches, B images of all ranks, C classes.
"""

import torch
import torch.nn.functional as F


def reslt(
    branch_KBC: torch.Tensor, label_B: torch.Tensor, member_KC: torch.Tensor, *, individual: float
) -> torch.Tensor:
    """individual * own + (1 - individual) * cross-entropy of the branches' sum, a scalar.

    `member_KC` says which classes a branch answers for; the first one's are all. Own is the cross-entropy of every
    branch on the images of its classes, summed and divided by the number of such images of all branches.
    """
    member_KB = member_KC[:, label_B]
    label_KB = label_B.expand_as(member_KB)
    term_KB = F.cross_entropy(branch_KBC.transpose(1, 2), label_KB, reduction="none")
    own = (term_KB * member_KB).sum() / member_KB.sum()
    return individual * own + (1 - individual) * F.cross_entropy(branch_KBC.sum(dim=0), label_B)
