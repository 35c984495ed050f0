"""Rejects by the largest softmax probability: the baseline of Hendrycks and Gimpel (ICLR 2017), and OLTR's own rule.

N images, C known classes.
"""

from facelt.openset.rejecter import Rejecter, Seen, Verdict


class Threshold(Rejecter):
    """The score is the largest probability. 0.1 is the threshold of OLTR's released code.

    An OLTR model has its reachability in these probabilities: it scales the vector that is classified, and a far image
    gets a flat softmax.
    """

    threshold = 0.1

    def judge(self, seen: Seen) -> Verdict:
        return Verdict.by_score(seen.logit_NC.argmax(dim=1), seen.logit_NC.double().softmax(dim=1).amax(dim=1))
