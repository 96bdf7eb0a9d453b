import torch
from torch import nn

import dqlab


class Denoiser(nn.Module):
    """Any module called as f(x, t, ...), where t may differ from row to row."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1)
        self.middle = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x, t, label):
        h = self.enter(x) + label[:, None, None, None] + t.view(-1, 1, 1, 1)
        return self.leave(torch.relu(self.middle(torch.relu(h))))


def sample(denoiser, seeds, sampler):
    """One picture per seed, [N, C, H, W] in [0, 1]; always through the denoiser it is given."""
    noise = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds]
    x, label = torch.stack(noise), torch.tensor([float(s % 2) for s in seeds])
    steps = sampler.num_inference_steps
    for k in range(steps, 0, -1):
        x = x - denoiser(x, torch.tensor(k / steps), label) / steps
    return x.sigmoid()


model = dqlab.wrap_module(Denoiser(), sample, first="enter", last="leave")
q = dqlab.quantize(model, "rtn", weights=4, activations=8)
comparison = dqlab.compare(model, q, num_seeds=4)
