"""What every test shares: fixed seeds, one thread, no network, and where the browser is."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
# Kernels run in Triton's interpreter, which must be chosen before Triton is first imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0")


def find_chromium() -> str | None:
    """Return the path of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a browser; skips the test where there is none."""
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium or Chrome on this machine (Debian: apt install chromium)")
    return path


@pytest.fixture(autouse=True)
def _same_every_time() -> Iterator[None]:
    """Seed every generator and use one thread, so that no test depends on its neighbours."""
    import random

    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the test process look up and reach this machine only."""

    def refuse_others(host: object) -> None:
        if host not in (*LOOPBACK, None, "", socket.gethostname()):
            raise OSError(f"tests may not use the network, tried {host}")

    def guarded(connect: Callable) -> Callable:
        def checked(self: socket.socket, address: tuple) -> object:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse_others(address[0])
            return connect(self, address)

        return checked

    def look_up(host: object, *more: object, **named: object) -> object:
        refuse_others(host)
        return ask(host, *more, **named)

    ask = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
