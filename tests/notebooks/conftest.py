"""The notebook tools, and a small source that uses all they offer."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "notebooks" / "src"))

from nbbuild import Folders  # noqa: E402

TINY = '''
# %% [markdown]
# # Tiny
#
# **Run time**: {{run time}}

# %% tags=["setup"]
from types import SimpleNamespace

class Check:
    """Stands for a check of dqlab.show."""
    def run(self, answer):
        try:
            outcome = "passed" if answer(4) == 16 else "wrong"
        except NotImplementedError:
            outcome = "not attempted"
        except Exception:
            outcome = "raised"
        return SimpleNamespace(outcome=outcome)

    def __call__(self, answer):
        print("levels:", self.run(answer).outcome)

check = Check()

# %%
import time
from IPython.display import display

time.sleep(0.1)
view = {"version_major": 2, "version_minor": 0, "model_id": str(time.time())}
display({"application/vnd.jupyter.widget-view+json": view, "text/plain": "a slider"}, raw=True)
print(not_for_exercises := 3)

# %% tags=["exercise"] exercise="levels"
def levels(bits):
    """How many values a code of so many bits can take."""
    ### BEGIN SOLUTION
    return 2**bits
    ### END SOLUTION

# %% tags=["check"] exercise="levels"
check(levels)

# %% tags=["mistake"] exercise="levels" why="counts the highest code, not the codes"
def levels(bits):
    return 2**bits - 1

# %% tags=["mistake"] exercise="levels" why="adds where it should multiply"
def levels(bits):
    return 2 * bits

# %% [markdown] tags=["solution"]
# Each further bit doubles the number of codes.
'''


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Folders that hold one source, "1-tiny"."""
    folders = Folders(tmp_path_factory.mktemp("tiny"))
    folders.sources.mkdir(parents=True)
    folders.source("1-tiny").write_text(TINY.lstrip(), encoding="utf-8")
    return folders
