"""How good videos are: constant over their frames, moving as asked, distributed like real ones.

A real garment keeps its kind and colours while it moves. The classifier errs on turned and
shifted garments too, so each figure stands beside that of real clips.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dqlab.metrics.frechet import frechet_with_error
from dqlab.models.classifier import HEADS, AttributeClassifier
from dqlab.models.video_features import VideoFeatures


class Share(NamedTuple):
    """A mean over clips and its standard error."""

    mean: float
    standard_error: float


def share(per_clip: Tensor) -> Share:
    """Mean and standard error of one number per clip, `[N]`; the error of one clip is NaN."""
    return Share(float(per_clip.mean()), float(per_clip.std() / len(per_clip) ** 0.5))


@torch.no_grad()
def frame_consistency(videos: Tensor, classifier: AttributeClassifier) -> dict[str, Share]:
    """Share of frames that show what most frames of their clip show, per attribute and for all.

    Args:
        videos: `[N, F, 3, 32, 32]` in [0, 1].
        classifier: reads garment, colour and background of every frame.

    """
    agrees = {}
    answers, _ = _read(videos, classifier)
    for head, answer in answers.items():
        agrees[head] = answer == answer.mode(dim=1, keepdim=True).values
    agrees["all"] = torch.stack(list(agrees.values())).all(0)
    return {head: share(hits.float().mean(1)) for head, hits in agrees.items()}


def _read(videos: Tensor, classifier: AttributeClassifier) -> tuple[dict[str, Tensor], Tensor]:
    """What every frame shows, `[N, F]` per attribute, and the confidence, `[N, F]`."""
    parts = [classifier.read(part * 2 - 1) for part in videos.flatten(0, 1).split(256)]
    shape = videos.shape[:2]
    heads = {h: torch.cat([getattr(seen, h) for seen, _ in parts]).view(shape) for h in HEADS}
    return heads, torch.cat([confidence for _, confidence in parts]).view(shape)


def frame_confidence(videos: Tensor, classifier: AttributeClassifier) -> Share:
    """The classifier's mean confidence in its answers, over frames."""
    return share(_read(videos, classifier)[1].mean(1))


@torch.no_grad()
def video_answers(videos: Tensor, net: VideoFeatures) -> dict[str, Tensor]:
    """What each clip shows and how it moves: int64 `[N]` per head of the feature net."""
    logits = [net(part * 2 - 1) for part in videos.split(32)]
    return {head: torch.cat([part[head] for part in logits]).argmax(1) for head in net.heads}


def video_agreement(
    videos: Tensor, asked: dict[str, Tensor], net: VideoFeatures
) -> dict[str, Share]:
    """Share of clips that show and do what was asked, per head named in `asked`.

    Args:
        videos: `[N, F, 3, 32, 32]` in [0, 1].
        asked: int64 `[N]` per head, of "garment", "colour", "background", "motion".
        net: the video feature net.

    """
    seen = video_answers(videos, net)
    return {head: share((seen[head] == wanted).float()) for head, wanted in asked.items()}


@torch.no_grad()
def video_features(videos: Tensor, net: VideoFeatures) -> Tensor:
    """`[N, F, 3, 32, 32]` in [0, 1] -> features `[N, 64]`."""
    return torch.cat([net.features(part * 2 - 1) for part in videos.split(32)])


def video_frechet(reference: Tensor, videos: Tensor, real: Tensor) -> dict[str, float]:
    """Frechet distance of video features to `reference`, and as a multiple of real clips' own.

    Args:
        reference: features of training clips, `[M, 64]`.
        videos: features of generated clips, `[N, 64]`.
        real: features of as many held-out real clips.

    """
    distance, error, _ = frechet_with_error(reference, videos)
    floor, floor_error, _ = frechet_with_error(reference, real)
    return {
        "distance": distance,
        "standard_error": error,
        "real_clips": floor,
        "real_clips_standard_error": floor_error,
        "multiple": distance / floor,
    }
