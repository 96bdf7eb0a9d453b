import errno
import json
import os
import sys
from pathlib import Path

import pytest
from tiny_models import fill_shipped

import dqlab
from dqlab import cli
from dqlab.errors import InvalidInputError
from dqlab.models import fashion
from dqlab.models.recipes import RECIPES

STEPS = ("--steps", "3")
BITS = ("-w", "4", "-a", "8")


@pytest.fixture(scope="module", autouse=True)
def shipped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped")
    fill_shipped(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DQLAB_SHIPPED_DIR", str(folder))
        yield folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: exit code, stdout, stderr."""

    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dqlab", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def refused(run):
    """Run a command that must fail with one sentence and exit code 2."""

    def call(*words) -> str:
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert err.startswith("error: ")
        return err

    return call


def test_help_names_every_command(run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in ("methods", "models", "quantize", "compare", "train", "card", "doctor"):
        assert name in out


@pytest.mark.parametrize("name", ["methods", "models"])
def test_lists(run, name) -> None:
    code, out, _ = run(name)
    assert code == 0
    assert {"methods": "rtn", "models": "tiny-unet"}[name] in out


def test_methods_as_json(run) -> None:
    code, out, _ = run("methods", "--json")
    rows = json.loads(out)
    assert code == 0
    assert rows == dqlab.methods_table()
    wanted = {"slug", "title", "venue", "arxiv", "category", "moments", "kind", "applies_to"}
    assert all(wanted <= row.keys() for row in rows)


def test_models_as_json(run) -> None:
    _, out, _ = run("models", "--json")
    assert [row["name"] for row in json.loads(out)] == ["tiny-unet"]


def test_quantize_writes_a_folder_that_loads(run, tmp_path) -> None:
    target = tmp_path / "deep" / "q[0]"
    code, out, _ = run("quantize", "tiny-unet", "-m", "rtn", *BITS, "-o", target, *STEPS)
    assert code == 0
    assert str(target) in out
    assert "W4A8" in out
    found = dqlab.describe(dqlab.load(target))
    assert (found["weights"], found["activations"]) == (4, 8)
    assert found["sampler"]["num_inference_steps"] == 3
    assert [p.name for p in target.parent.iterdir()] == ["q[0]"]


@pytest.mark.parametrize(("weights", "activations"), [("fp4", "none"), ("8", "fp8")])
def test_formats_by_name(run, tmp_path, weights, activations) -> None:
    command = ("quantize", "tiny-unet", "-m", "rtn", "-w", weights, "-a", activations)
    assert run(*command, "-o", tmp_path / "q", *STEPS)[0] == 0
    found = dqlab.describe(dqlab.load(tmp_path / "q"))
    assert str(found["weights"]) == weights
    assert found["activations"] == (None if activations == "none" else activations)


def test_compare_as_json(run) -> None:
    command = ("compare", "tiny-unet", "--method", "rtn", "--weights", "4", "--activations", "8")
    code, out, _ = run(*command, *STEPS, "--seeds", "2", "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 0
    assert {"sqnr_db_mean", "rtn_sqnr_db_mean", "sqnr_db_interval", "flips"} <= found.keys()
    assert found["model"] == "tiny-unet"
    assert found["sqnr_db_mean"] == pytest.approx(found["rtn_sqnr_db_mean"])
    assert found["num_seeds"] == 2


def test_compare_for_people(run) -> None:
    code, out, _ = run("compare", "tiny-unet", "-m", "rtn", *BITS, *STEPS, "--seeds", "2")
    assert code == 0
    assert "noise SQNR, mean over steps" in out
    assert "plain rounding, same bits" in out


def test_several_methods_are_ranked(run) -> None:
    command = ("compare", "tiny-unet", "-m", "rtn", "-m", "ptqd", *BITS, *STEPS, "--seeds", "2")
    code, out, _ = run(*command, "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 0
    assert found["ranked_by"] == "sqnr_db_mean"
    assert sorted(p["method"] for p in found["pipelines"]) == ["ptqd", "rtn"]


def test_frechet_needs_enough_pictures(refused, monkeypatch) -> None:
    monkeypatch.setattr("dqlab.quantize", lambda *a, **k: pytest.fail("minutes before refusing"))
    command = ("compare", "tiny-unet", "-m", "rtn", *BITS, *STEPS, "--frechet", "10")
    assert "frechet=10; choose True, or 512 to 4000" in refused(*command)


@pytest.mark.parametrize("command", [("compare",), ("quantize", "-o", "unused")])
@pytest.mark.parametrize(
    ("model", "method", "weights", "activations", "named"),
    [
        ("no-such", "rtn", "4", "8", "No model 'no-such'. Shipped: tiny-unet"),
        ("tiny-unet", "q-difusion", "4", "8", "No method 'q-difusion'; there are rtn"),
        ("tiny-unet", "rtn", "1", "8", "weights=1 is not a bit-width"),
        ("tiny-unet", "rtn", "4", "9", "activations=9 is not a bit-width"),
        ("tiny-unet", "rtn", "-4", "8", "weights=-4 is not a bit-width"),
        ("tiny-unet", "rtn", "3.5", "8", "unknown number format '3.5'"),
        ("tiny-unet", "rtn", "²", "8", "unknown number format '²'"),
        ("tiny-unet", "rtn", "4", "fp3", "unknown number format 'fp3'"),
        ("tiny-unet", "rtn", "[a]", "8", "unknown number format '[a]'"),
    ],
)
def test_bad_arguments(
    refused, tmp_path, monkeypatch, command, model, method, weights, activations, named
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *more = command
    words = (name, model, "-m", method, *STEPS, *more)
    words += (f"--weights={weights}", f"--activations={activations}")
    assert named in refused(*words)
    assert list(tmp_path.iterdir()) == []


def test_missing_and_unknown_options(run) -> None:
    for words in (("quantize", "tiny-unet"), ("compare",), ("fly",), ("methods", "--jsn"),
                  ("compare", "tiny-unet", "-m", "rtn", *BITS, "--steps", "many")):  # fmt: skip
        code, _, err = run(*words)
        assert code == 2
        assert "Traceback" not in err


def test_existing_folder_is_not_overwritten(refused, tmp_path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mine").touch()
    command = ("quantize", "tiny-unet", "-m", "rtn", *BITS, "-o", tmp_path / "q")
    assert "exists already; give a new folder" in refused(*command)
    assert [p.name for p in (tmp_path / "q").iterdir()] == ["mine"]


def never(*args, **named):
    pytest.fail("the folder must be tried before the long work")


def test_folder_below_a_file(refused, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dqlab, "quantize", never, raising=False)
    (tmp_path / "file").touch()
    command = ("quantize", "tiny-unet", "-m", "rtn", *BITS, "-o", tmp_path / "file" / "q")
    assert "cannot be written" in refused(*command)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs an ordinary user")
def test_folder_without_permission(refused, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dqlab, "quantize", never, raising=False)
    tmp_path.chmod(0o500)
    try:
        command = ("quantize", "tiny-unet", "-m", "rtn", *BITS, "-o", tmp_path / "q")
        assert "Permission denied" in refused(*command)
    finally:
        tmp_path.chmod(0o700)


def test_disk_that_fills_up(refused, tmp_path, monkeypatch) -> None:
    from diffusers import DDIMPipeline

    def full(self, folder, **named):
        Path(folder).mkdir()
        (Path(folder) / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DDIMPipeline, "save_pretrained", full)
    command = ("quantize", "tiny-unet", "-m", "rtn", *BITS, "-o", tmp_path / "q", *STEPS)
    assert "No space left on device" in refused(*command)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_files_only():
    """No file of this process may grow beyond 30 kB."""
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_writer_that_really_fails(refused, tmp_path, small_files_only) -> None:
    command = ("quantize", "tiny-unet", "-m", "rtn", *BITS, "-o", tmp_path / "q", *STEPS)
    assert "cannot be written" in refused(*command)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_leaves_nothing(run, tmp_path, monkeypatch) -> None:
    def interrupted(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("dqlab.methods.run.write_record", interrupted)
    command = ("quantize", "tiny-unet", "-m", "rtn", *BITS, "-o", tmp_path / "q", *STEPS)
    code, _, err = run(*command)
    assert code == 130
    assert "Stopped. Nothing was half-written" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/tmp/x]", "a [red] b", "x" * 200])
def test_errors_are_printed_as_they_are(refused, monkeypatch, text) -> None:
    def fail():
        raise InvalidInputError(text)

    monkeypatch.setattr("dqlab.api.methods_table", fail)
    assert refused("methods") == f"error: {text}\n"


def test_train(run, refused, monkeypatch, tmp_path) -> None:
    import torch

    grey = torch.zeros(20, 32, 32, dtype=torch.uint8)
    monkeypatch.setattr(fashion, "load_split", lambda split: (grey, torch.arange(20) % 10))
    monkeypatch.setenv("DQLAB_STATE_DIR", str(tmp_path / "state"))
    recipe = RECIPES["attribute-classifier"]
    monkeypatch.setattr(recipe, "settings", recipe.settings | {"batch": 2, "width": 8})
    command = ("train", "attribute-classifier", "--device", "cpu", "--out", tmp_path / "out")
    code, out, _ = run(*command, "--steps", "1")
    assert code == 0
    assert str(tmp_path / "out") in out
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "must be positive" in refused(*command, "--steps", "0")
    assert "No training recipe 'big'" in refused("train", "big", "--steps", "1")


def test_train_hands_on_what_it_was_asked(run, monkeypatch, tmp_path) -> None:
    told: dict[str, object] = {}
    monkeypatch.setattr(
        "dqlab.models.training.train_model", lambda name, **asked: told.update(asked, name=name)
    )
    options = ("--steps", "3", "--batch", "8", "--device", "cpu", "--fresh")
    assert run("train", "pixel-unet", *options, "--out", str(tmp_path))[0] == 0
    assert told == {
        "name": "pixel-unet", "minutes": None, "steps": 3, "batch": 8, "device": "cpu",
        "fresh": True, "out": tmp_path,
    }  # fmt: skip


def test_train_what_is_missing(run, refused, monkeypatch, tmp_path) -> None:
    trained: list[str] = []
    monkeypatch.setattr(
        "dqlab.models.training.train_model", lambda name, **_: trained.append(name)
    )
    monkeypatch.setenv("DQLAB_SHIPPED_DIR", str(tmp_path))
    there = tmp_path / "models" / "pixel-unet"
    there.mkdir(parents=True)
    (there / "training.json").write_text("{}")
    code, out, _ = run("train", "--all", "--missing", "--minutes", "2")
    assert code == 0
    assert trained == [name for name in RECIPES if name != "pixel-unet"]
    assert f"({2 * len(trained)} minutes in all)" in " ".join(out.split())
    assert "--missing goes with" in " ".join(refused("train", "pixel-unet", "--missing").split())
    assert "without --out and --batch" in " ".join(
        refused("train", "--all", "--batch", "8").split()
    )


def test_card_of_an_unknown_model(refused) -> None:
    pytest.importorskip("dqlab.metrics.quality")
    assert "no-such" in refused("card", "no-such")


def test_doctor_as_json(run) -> None:
    pytest.importorskip("dqlab.doctor")
    code, out, _ = run("doctor", "--json")
    checks = json.loads(out)
    assert code == 0
    assert all({"name", "status", "found", "advice"} <= check.keys() for check in checks)
