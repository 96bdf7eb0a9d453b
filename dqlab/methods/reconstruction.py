"""The phase that fits a model unit by unit, for any method's `fit`."""

from dataclasses import dataclass, field, replace

from torch import nn

from dqlab.fit import Settings, UnitReport, reconstruct_all, units_of
from dqlab.methods.job import Job


@dataclass
class Reconstruct:
    """Fit every unit of the job's denoiser in execution order.

    Attributes:
        name: for progress and records.
        teacher: `job.teacher`.
        settings: what is learned and how long.
        leave: paths of layers whose weights are settled already and stay out of it.
        reports: what came out, one per unit that had something to learn.

    """

    name: str
    teacher: nn.Module
    settings: Settings
    leave: frozenset[str] = frozenset()
    reports: list[UnitReport] = field(default_factory=list)

    def run(self, job: Job) -> None:
        """Do it; the weights lie on their grid afterwards. Finished units survive a kill."""
        folder = job.state_dir and job.state_dir / f"{job.phase}-{self.name.replace(' ', '-')}"
        units = units_of(job.denoiser, job.anatomy.order, job.anatomy.layers)
        mine = [
            replace(unit, layers=tuple(p for p in unit.layers if p not in self.leave))
            for unit in units
            if not self.leave.issuperset(unit.layers or {""})
        ]
        self.reports = reconstruct_all(
            job.denoiser,
            self.teacher,
            mine,
            job.calibration,
            self.settings,
            seed=job.seed * 1_000_003,
            label=self.name,
            run_dir=folder,
        )
        for layer in job.layers():
            layer.freeze()
