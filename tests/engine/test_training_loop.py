import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_task import STEPS, TinyTask, bytes_of, run

from dqlab.engine import Budget, Stage, TrainingDivergedError, constant, cosine, train
from dqlab.engine.ema import MovingAverage
from dqlab.engine.loop import STATE_FILE
from dqlab.engine.precision import PRECISIONS
from dqlab.engine.state import load_state, save_state, write_atomically
from dqlab.errors import CheckpointError, InvalidInputError

ALL_STEPS = [("first", k) for k in range(STEPS[0])] + [("second", k) for k in range(STEPS[1])]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_same_seed_same_bytes(ema) -> None:
    once, again = (bytes_of(run(TinyTask(ema)).module) for _ in range(2))
    assert once == again
    assert bytes_of(run(TinyTask(ema), seed=2).module) != once


def test_stages_run_in_order() -> None:
    task = TinyTask()
    report = run(task)
    assert task.seen == ALL_STEPS
    assert task.started == ["first", "second"]
    assert [(s["name"], s["steps"]) for s in report.stages] == [("first", 5), ("second", 4)]


@pytest.mark.parametrize(("where", "ema"), [("loss", 0.9), ("save", None)])
def test_resumes_after_kill_with_the_same_bytes(tmp_path, where, ema) -> None:
    script = Path(__file__).with_name("tiny_task.py")
    command = [sys.executable, str(script), str(tmp_path), where, str(ema or 0)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    task = TinyTask(ema)
    resumed = run(task, tmp_path)
    begin = {"loss": ALL_STEPS.index(("second", 2)), "save": 3}[where]
    assert task.seen == ALL_STEPS[begin:]
    assert bytes_of(resumed.module) == bytes_of(run(TinyTask(ema)).module)


@pytest.mark.parametrize("at", [("first", 0), ("first", 3), ("second", 0), ("second", 2)])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_interrupt_saves_and_resume_gives_the_same_bytes(tmp_path, at, ema) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(TinyTask(ema, act=interrupt_at(*at)), tmp_path, save_every=1e9)
    task = TinyTask(ema)
    resumed = run(task, tmp_path)
    assert task.seen[0] == at
    assert bytes_of(resumed.module) == bytes_of(run(TinyTask(ema)).module)


class InterruptedStep(torch.optim.AdamW):
    """Ctrl-C arrives inside the second optimiser step."""

    def step(self, closure=None):
        done = super().step(closure)
        self.count = getattr(self, "count", 0) + 1
        if self.count == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return done


def test_interrupt_inside_a_step_saves_the_whole_step(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(TinyTask(0.9, optimizer=InterruptedStep), tmp_path, save_every=1e9)
    task = TinyTask(0.9)
    resumed = run(task, tmp_path)
    assert task.seen == ALL_STEPS[2:]
    assert bytes_of(resumed.module) == bytes_of(run(TinyTask(0.9)).module)


def test_interrupt_between_stages_keeps_no_moments_of_the_first(tmp_path) -> None:
    task = TinyTask()

    def interrupted() -> None:
        raise KeyboardInterrupt

    task.stages[1].start = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(task, tmp_path)
    assert bytes_of(run(TinyTask(), tmp_path).module) == bytes_of(run(TinyTask()).module)


def test_same_task_goes_on_after_an_interrupt_in_the_backward_pass(tmp_path) -> None:
    task = TinyTask()

    def interrupt(grad):
        if task.seen[-1] == ("first", 2) and not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return grad

    pressed: list[bool] = []
    task.module[0].weight.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(task, tmp_path)
    assert bytes_of(run(task, tmp_path).module) == bytes_of(run(TinyTask()).module)


def test_start_runs_before_the_saved_weights_are_loaded(tmp_path) -> None:
    def make(act=None):
        task = TinyTask(act=act)

        def reset() -> None:
            task.started.append("second")
            torch.nn.init.zeros_(task.module[2].weight)

        task.stages[1].start = reset
        return task

    def interrupt(*here) -> None:
        if here == ("second", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make(interrupt), tmp_path)
    assert bytes_of(run(make(), tmp_path).module) == bytes_of(run(make()).module)


def test_finished_run_returns_at_once(tmp_path) -> None:
    first = run(TinyTask(0.9), tmp_path)
    task = TinyTask(0.9)
    second = run(task, tmp_path)
    assert task.seen == []
    assert bytes_of(second.module) == bytes_of(first.module)
    assert second.stages == first.stages
    assert (first.steps, second.steps) == (9, 0)


def test_finished_run_goes_on_with_a_larger_budget(tmp_path) -> None:
    first = run(TinyTask(0.9), tmp_path)
    task = TinyTask(0.9, steps=(5, 7), act=interrupt_at("second", 6))
    with pytest.raises(KeyboardInterrupt):
        run(task, tmp_path)
    assert task.seen == [("second", 4), ("second", 5), ("second", 6)]
    task = TinyTask(0.9, steps=(5, 7))
    longer = run(task, tmp_path)
    assert task.seen == [("second", 6)]
    assert [s["steps"] for s in longer.stages] == [5, 7]
    assert longer.stages[1]["reopened"] == [4]
    assert bytes_of(longer.module) != bytes_of(first.module)
    run(TinyTask(0.9), tmp_path / "other")
    straight = run(TinyTask(0.9, steps=(5, 7)), tmp_path / "other")
    assert bytes_of(straight.module) == bytes_of(longer.module)


def test_a_smaller_budget_takes_nothing_back(tmp_path) -> None:
    first = run(TinyTask(), tmp_path)
    task = TinyTask(steps=(5, 2))
    assert bytes_of(run(task, tmp_path).module) == bytes_of(first.module)
    assert task.seen == []


def interrupt_at(*place):
    """What makes a task stop as by Ctrl-C at (stage, step)."""

    def act(*here) -> None:
        if here == place:
            raise KeyboardInterrupt

    return act


def test_fresh_ignores_the_saved_state(tmp_path) -> None:
    run(TinyTask(), tmp_path)
    task = TinyTask()
    run(task, tmp_path, fresh=True)
    assert task.seen == ALL_STEPS


def test_time_budget_ends() -> None:
    task = TinyTask()
    task.stages = [Stage(Budget(minutes=1e-3), list(task.module.parameters()), 0.01)]
    task.started = ["train"]
    report = run(task)
    assert report.stages[0]["steps"] == len(task.seen) >= 1


def test_seconds_kept_to_a_tenth_reopen_nothing(tmp_path) -> None:
    timed = TinyTask()
    timed.started = ["first"]
    timed.stages = [Stage(Budget(minutes=1e-3), list(timed.module.parameters()), 0.01)]
    run(timed, tmp_path)
    tensors, facts = load_state(tmp_path / STATE_FILE)
    facts["finished"][0]["seconds"] = 0.0  # 0.06 s, to a tenth below
    save_state(tmp_path / STATE_FILE, tensors, facts | {"finished": facts["finished"]})
    timed.stages = [Stage(Budget(minutes=5e-4), list(timed.module.parameters()), 0.01)]
    assert run(timed, tmp_path).steps == 0


@pytest.mark.parametrize("named", [{"seed": 2}, {}])
def test_state_of_another_run_is_refused(tmp_path, named) -> None:
    run(TinyTask(), tmp_path)
    other = TinyTask()
    if not named:
        other.fingerprint = "tiny-2"
    before = bytes_of(other.module)
    with pytest.raises(CheckpointError, match=r"another run.*fresh=True"):
        run(other, tmp_path, **named)
    assert bytes_of(other.module) == before


def test_state_of_another_shape_is_refused(tmp_path) -> None:
    run(TinyTask(), tmp_path)
    other = TinyTask()
    other.module[0] = torch.nn.Linear(4, 9)
    with pytest.raises(CheckpointError, match="does not fit"):
        run(other, tmp_path)


def test_a_run_keeps_its_precision(tmp_path) -> None:
    run(TinyTask(), tmp_path)
    with pytest.raises(CheckpointError, match=r"fp32.*bf16.*fresh=True"):
        run(TinyTask(), tmp_path, precision="bf16")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_state_is_refused(tmp_path, keep) -> None:
    run(TinyTask(), tmp_path)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="Delete it"):
        run(TinyTask(), tmp_path)


def test_other_files_are_no_state(tmp_path) -> None:
    path = tmp_path / STATE_FILE
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a readable training state"):
        run(TinyTask(), tmp_path)
    save_file({"w": torch.zeros(2)}, path, metadata={"dqlab": '{"version": 99}'})
    with pytest.raises(CheckpointError, match="version 99"):
        run(TinyTask(), tmp_path)
    save_file({"w": torch.zeros(2)}, path, metadata={"dqlab": "[1]"})
    with pytest.raises(CheckpointError, match="not a readable training state"):
        run(TinyTask(), tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_the_step_and_keeps_the_last_state(tmp_path, bad) -> None:
    task = TinyTask(act=lambda *here: bad if here == ("first", 3) else None)
    with pytest.raises(TrainingDivergedError, match=r"step 3 of stage 'first'.*learning rate"):
        run(task, tmp_path)
    task = TinyTask()
    resumed = run(task, tmp_path)
    assert task.seen == ALL_STEPS[3:]
    assert bytes_of(resumed.module) == bytes_of(run(TinyTask()).module)


def test_auto_picks_a_precision_and_leaves_no_trace(tmp_path) -> None:
    report = run(TinyTask(), precision="auto")
    assert report.precision in PRECISIONS
    assert bytes_of(report.module) == bytes_of(run(TinyTask(), precision=report.precision).module)
    with pytest.raises(InvalidInputError, match=r"'fp64'.*fp32.*auto"):
        train(TinyTask(), seed=0, precision="fp64")


def test_on_save_sees_the_average(tmp_path) -> None:
    seen = []
    report = run(TinyTask(0.9), tmp_path, on_save=lambda module: seen.append(module))
    assert seen
    assert seen[-1] is report.module


def test_average_follows_its_formula() -> None:
    values = [1.0, 3.0, -2.0, 5.0]
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(values[0])
    average, expected = MovingAverage(module, 0.25), values[0]
    for step, value in enumerate(values[1:]):
        module.weight.data.fill_(value)
        average.update(module, step)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert [min(0.25, (1 + k) / (10 + k)) for k in range(3)] == [0.1, 2 / 11, 0.25]


def test_average_copies_buffers() -> None:
    module = torch.nn.BatchNorm1d(2)
    average = MovingAverage(module, 0.5)
    module.running_mean.fill_(7.0)
    average.update(module, 100)
    assert average.module.running_mean.tolist() == [7.0, 7.0]


def test_schedules() -> None:
    assert [constant(x) for x in (0, 0.5, 1)] == [1, 1, 1]
    plain = cosine()
    assert [plain(0), plain(1)] == pytest.approx([1, 0])
    assert plain(0.5) == pytest.approx(0.5)
    warm = cosine(0.2)
    assert 0 < warm(0) < 0.01
    assert warm(0.1) == pytest.approx(0.5, abs=0.01)
    assert warm(0.2) == pytest.approx(1)
    assert warm(0.6) == pytest.approx(0.5)
    assert warm(1) == pytest.approx(0)


def test_groups_keep_their_own_rate() -> None:
    task = TinyTask(steps=(4, 1))
    rates = []
    groups = [
        {"params": task.module[0].parameters(), "lr": 0.3},
        {"params": task.module[2].parameters()},
    ]

    class Noted(torch.optim.SGD):
        def step(self, closure=None):
            rates.append([g["lr"] for g in self.param_groups])
            return super().step(closure)

    task.stages = [Stage(Budget(steps=4), groups, 0.1, cosine(), optimizer=Noted)]
    task.started = ["train"]
    run(task)
    factors = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == [pytest.approx([0.3 * f, 0.1 * f]) for f in factors]


def test_clipping_bounds_the_gradient() -> None:
    task, norms = TinyTask(steps=(3, 1), act=lambda *_: 1e6), []

    class Noted(torch.optim.SGD):
        def step(self, closure=None):
            grads = [p.grad.flatten() for g in self.param_groups for p in g["params"]]
            norms.append(torch.cat(grads).norm().item())
            return super().step(closure)

    parameters = list(task.module.parameters())
    task.stages = [Stage(Budget(steps=3), parameters, 1e-3, optimizer=Noted, clip_norm=1.0)]
    task.started = ["train"]
    run(task)
    assert norms == pytest.approx([1.0] * 3, rel=1e-3)


@pytest.mark.parametrize(
    "given",
    [{}, {"steps": 1, "minutes": 1}, {"steps": 0}, {"steps": -3}, {"minutes": 0.0},
     {"minutes": math.nan}],
)  # fmt: skip
def test_impossible_budgets_are_refused(given) -> None:
    with pytest.raises(InvalidInputError, match="budget"):
        Budget(**given)


def test_budget_fraction() -> None:
    assert [Budget(steps=4).fraction(k, 1e9) for k in (0, 1, 4, 9)] == [0, 0.25, 1, 1]
    assert [Budget(minutes=2).fraction(99, s) for s in (0, 30, 120, 999)] == [0, 0.25, 1, 1]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path) -> None:
    path = tmp_path / "state"
    write_atomically(path, lambda temporary: temporary.write_bytes(b"old"))

    def full_disk(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, full_disk)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    assert path.read_bytes() == b"old"


def test_failed_rename_leaves_the_old_state(tmp_path, monkeypatch) -> None:
    path = tmp_path / "state"
    save_state(path, {"w": torch.zeros(1)}, {})
    before = path.read_bytes()

    def refuse(*_) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        save_state(path, {"w": torch.ones(1)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    assert path.read_bytes() == before
