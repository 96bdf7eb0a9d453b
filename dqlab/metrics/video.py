"""How good videos are: constant over their frames, moving as asked, distributed like real ones.

A real garment keeps its kind and colours while it moves. The classifier errs on turned and
shifted garments too, so each figure stands beside that of real clips.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.metrics.frechet import frechet_with_error, stored_features
from dqlab.metrics.sampling import sample
from dqlab.models import fashion
from dqlab.models.captions import attributes_of
from dqlab.models.classifier import HEADS, AttributeClassifier, load_classifier
from dqlab.models.families import Sampler, family_of
from dqlab.models.loading import file_sums, open_pipeline
from dqlab.models.motion import Clips, film, motions_of
from dqlab.models.tint import Attributes
from dqlab.models.video_features import VideoFeatures, load_video_features
from dqlab.paths import data_dir, models_dir

SAMPLES = 400
"""Generated clips behind a model card: four parts of 100 give the distance's error."""
REFERENCE = 2_000


class Share(NamedTuple):
    """A mean over clips and its standard error."""

    mean: float
    standard_error: float

    def rounded(self) -> dict[str, float]:
        """Four digits, for a record."""
        return {name: round(value, 4) for name, value in self._asdict().items()}


def share(per_clip: Tensor) -> Share:
    """Mean and standard error of one number per clip, `[N]`, N > 1."""
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


def held_out_clips(frames: int, count: int = SAMPLES) -> Clips:
    """The first of the 1,000 shipped test images in fixed tints and motions."""
    grey, labels = fashion.load_held_out()
    generator = torch.Generator().manual_seed(seeds.TINT)
    return film(grey[:count], labels[:count], frames, generator)


def reference_video_features(net: VideoFeatures, frames: int) -> Tensor:
    """Features of 2,000 clips of training images `[2000, 64]`: shipped, or computed and stored."""

    def compute() -> Tensor:
        grey, labels = (values[:REFERENCE] for values in fashion.load_split("train"))
        generator = torch.Generator().manual_seed(1)
        parts = zip(grey.split(200), labels.split(200), strict=True)
        clips = (film(*part, frames, generator).frames for part in parts)
        return torch.cat([video_features(clip / 2 + 0.5, net) for clip in clips])

    path = data_dir() / "reference" / f"clip-features-{frames}.safetensors"
    maker = file_sums(models_dir() / "video-features")["model.safetensors"]
    return stored_features(path, maker, compute)


def measure_video_features(folder: Path) -> dict[str, Any]:
    """Accuracy per head on held-out clips of 8 and 16 frames."""
    net, found = load_video_features(folder), {}
    for frames in (8, 16):
        clips = held_out_clips(frames)
        truth = _attributes(clips.shown) | {"motion": clips.motion}
        found[f"{frames}_frames"] = _plain(video_agreement(clips.frames / 2 + 0.5, truth, net))
    return {"clips": SAMPLES, "accuracy": found}


def measure_video_model(folder: Path) -> dict[str, Any]:
    """Constancy over frames, agreement, confidence and distance, beside those of real clips."""
    pipe, net = open_pipeline(folder), load_video_features()
    wanted = list(seeds.QUALITY[:SAMPLES])
    start = time.perf_counter()
    videos = sample(pipe, wanted, 10)
    seconds = (time.perf_counter() - start) / SAMPLES
    clips = held_out_clips(videos.shape[1])
    asked = _attributes(attributes_of(wanted))
    # video-unet is not told how to move: what it is not asked it cannot agree with.
    if folder.name == "video-dit":
        asked["motion"] = motions_of(wanted)
    truth = _attributes(clips.shown) | {"motion": clips.motion}
    real = clips.frames / 2 + 0.5
    features = (video_features(shown, net) for shown in (videos, real))
    distance = video_frechet(reference_video_features(net, videos.shape[1]), *features)
    return {
        "samples": SAMPLES,
        "frames": videos.shape[1],
        "sampler": vars(Sampler()),
        "guidance_scale": family_of(pipe).guidance(Sampler()),
        "frechet": {name: round(value, 4) for name, value in distance.items()},
        "generated": _seen(videos, asked, net),
        "real": _seen(real, truth, net),
        "seconds_per_clip": round(seconds, 2),
    }


def _attributes(shown: Attributes) -> dict[str, Tensor]:
    return {head: getattr(shown, head) for head in HEADS}


def _seen(videos: Tensor, asked: dict[str, Tensor], net: VideoFeatures) -> dict[str, Any]:
    """What is measured of generated and of real clips alike."""
    classifier = load_classifier()
    return {
        "frames_like_the_majority": _plain(frame_consistency(videos, classifier)),
        "agreement": _plain(video_agreement(videos, asked, net)),
        "confidence": frame_confidence(videos, classifier).rounded(),
    }


def _plain(shares: dict[str, Share]) -> dict[str, dict[str, float]]:
    return {head: found.rounded() for head, found in shares.items()}
