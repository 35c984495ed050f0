"""OpenMax (Bendale and Boult, CVPR 2016): an unknown class takes what far classes lose.

N images, B images of a batch, C known classes.
"""

import torch
import torch.nn.functional as F

from facelt.errors import UserError
from facelt.openset.rejecter import Passes, Rejecter, Seen, Verdict
from facelt.openset.tails import Tails

# A class's mean vector has a number for each class.
MOST_CLASSES = 20_000


class OpenMax(Rejecter):
    """Of the 10 largest logits (all where there are fewer), rank i from 1, each becomes z'_c = z_c (1 - a_i W_c(d_c)),
    a_i falling from 1 to 1/10. The unknown class's logit is the sum of z_c - z'_c, negative logits included; then comes
    the softmax over all C + 1.

    d_c is the distance of the logit vector to the mean logit vector of the class's rightly classified training images,
    Euclidean / 200 + cosine; W_c the Weibull distribution of the 20 largest such distances in training. Where a class
    has fewer than 3 such images nothing says how far its images stray: W_c is 0, and it keeps its logit.

    An image is rejected where the unknown class wins, or the best known one has a probability below the threshold,
    which is 0.1 as for plain softmax. The score is log((1 - p_unknown) / p_unknown).
    """

    threshold = 0.1
    wants_training = True
    alpha = 10

    def fit(self, passes: Passes) -> None:
        """Two passes: means, then distances to them. Raises UserError where too many classes are known."""
        sum_CC, count_C = None, None
        for logit_BC, label_B in passes():
            right_B = logit_BC.argmax(dim=1) == label_B
            if sum_CC is None:
                sum_CC = _zeros(logit_BC.shape[1])
                count_C = torch.zeros(logit_BC.shape[1], dtype=torch.float64)
            sum_CC.index_add_(0, label_B[right_B], logit_BC[right_B].double())
            count_C += label_B[right_B].bincount(minlength=len(count_C))
        if sum_CC is None:
            raise UserError("openmax: none of the training images can be read, and it is fitted on them")
        self.mean_CC = sum_CC / count_C.clamp_min(1)[:, None]
        distances, labels = [], []
        for logit_BC, label_B in passes():
            right_B = logit_BC.argmax(dim=1) == label_B
            distances.append(distance(logit_BC[right_B].double(), self.mean_CC[label_B[right_B]]))
            labels.append(label_B[right_B])
        self.tails = Tails.fit(torch.cat(distances).numpy(), torch.cat(labels).numpy(), len(self.mean_CC))

    def judge(self, seen: Seen) -> Verdict:
        logit_NC = seen.logit_NC.double()
        moved_NC = logit_NC.clone()
        alpha = min(self.alpha, logit_NC.shape[1])
        ranked_NA = logit_NC.topk(alpha, dim=1).indices
        for place in range(alpha):
            class_N = ranked_NA[:, place]
            distance_N = distance(logit_NC, self.mean_CC[class_N])
            stray_N = torch.from_numpy(self.tails.strays(distance_N.numpy(), class_N.numpy()))
            own_N = logit_NC.gather(1, class_N[:, None])[:, 0]
            moved_NC.scatter_(1, class_N[:, None], (own_N * (1 - (alpha - place) / alpha * stray_N))[:, None])
        unknown_N = (logit_NC - moved_NC).sum(dim=1)
        known_N = moved_NC.logsumexp(dim=1)
        best_N, class_N = moved_NC.max(dim=1)
        probability_N = (best_N - torch.logaddexp(known_N, unknown_N)).exp()
        return Verdict(class_N, probability_N, known_N - unknown_N, unknown_N > best_N)


def distance(one_NC: torch.Tensor, other_NC: torch.Tensor) -> torch.Tensor:
    """Euclidean / 200 + (1 - cosine) of vectors side by side, [N]."""
    return (one_NC - other_NC).norm(dim=1) / 200 + 1 - F.cosine_similarity(one_NC, other_NC, dim=1)


def _zeros(classes: int) -> torch.Tensor:
    if classes > MOST_CLASSES:
        raise UserError(
            f"openmax: it keeps a vector of all classes for each, too much for {classes:,} classes (at most "
            f"{MOST_CLASSES:,}); choose another open-set method"
        )
    return torch.zeros(classes, classes, dtype=torch.float64)
