"""ODIN (Liang et al., ICLR 2018): a softmax at high temperature, of the image moved a little towards its own class.

N images, C known classes.
"""

import torch
import torch.nn.functional as F

from facelt.openset.rejecter import Rejecter, Seen, Verdict


class Odin(Rejecter):
    """The score is max softmax(z(x') / T) with x' = x - step * sign(gradient) / std, the sign of 0 being +1.

    The gradient is that of -log max softmax(z(x) / T) by the network's input, and the division, channel by channel, as
    in the released code: the step is one of pixels' full range. T 1000 and step 0.0028 are its settings for
    DenseNet-BC-100 with CIFAR-100 against TinyImageNet (resized). The class is that of the image as it is.
    """

    temperature = 1000.0
    step = 0.0028

    def judge(self, seen: Seen) -> Verdict:
        with torch.enable_grad():
            image_N3HW = seen.image_N3HW.detach().requires_grad_()
            logit_NC = seen.logits_of(image_N3HW)
            # A sum: each image's gradient is its own, whatever the batch.
            loss = F.cross_entropy(logit_NC.double() / self.temperature, logit_NC.argmax(dim=1), reduction="sum")
            (gradient_N3HW,) = torch.autograd.grad(loss, image_N3HW)
        with torch.no_grad():
            std_311 = image_N3HW.new_tensor(seen.std)[:, None, None]
            sign_N3HW = torch.where(gradient_N3HW >= 0, 1.0, -1.0)
            moved_NC = seen.logits_of(image_N3HW - self.step * sign_N3HW / std_311)
            score_N = (moved_NC.double() / self.temperature).softmax(dim=1).amax(dim=1)
        return Verdict.by_score(seen.logit_NC.argmax(dim=1), score_N)
