"""A task of a few milliseconds; run as a script, it trains and dies on the way."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from dqlab.engine import Budget, Stage, train

STEPS = (5, 4)


class TinyTask:
    """Two stages of linear regression; `act(stage, step)` is called inside the loss."""

    fingerprint = "tiny-1"

    def __init__(self, ema_decay=None, steps=STEPS, act=None, optimizer=torch.optim.AdamW):
        torch.manual_seed(3)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.ema_decay, self.act = ema_decay, act
        self.seen: list[tuple[str, int]] = []
        self.started: list[str] = []
        self.stages = [
            Stage(
                Budget(steps=count),
                list(self.module.parameters()),
                lr=0.05,
                optimizer=optimizer,
                name=name,
                start=lambda name=name: self.started.append(name),
            )
            for name, count in zip(("first", "second"), steps, strict=True)
        ]

    def batch(self, generator):
        x = torch.randn(16, 4, generator=generator)
        return x, torch.randn(16, 2, generator=generator)

    def loss(self, batch, progress):
        stage = self.started[-1]
        self.seen.append((stage, progress.step))
        loss = (self.module(batch[0]) - batch[1]).square().mean()
        acted = self.act(stage, progress.step) if self.act else None
        return loss if acted is None else loss * acted


def bytes_of(module) -> bytes:
    return b"".join(t.numpy().tobytes() for t in module.state_dict().values())


def run(task, folder=None, **named):
    named = {"precision": "fp32", "progress": False, "seed": 1, "save_every": 0.0} | named
    return train(task, run_dir=folder, **named)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, where: str, ema: str) -> None:
    """Die without a chance to clean up: in the second stage's loss, or while saving."""
    here = {"loss": lambda stage, step: die() if (stage, step) == ("second", 2) else None}
    task = TinyTask(float(ema) or None, act=here.get(where))
    if where == "save":
        replace, count = os.replace, iter(range(100))
        os.replace = lambda *names: die() if next(count) == 3 else replace(*names)
    run(task, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
