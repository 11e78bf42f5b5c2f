"""The picture of the playground: one prompt with and without speculation, on a bundle.

    PYTHONPATH=tests .venv/bin/python benchmarks/playground.py smol.bundle docs/playground.png

It needs Chromium and, for the same look, the font Inter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests_support import browser


def take(url: str, picture: Path, *, dark: bool) -> None:
    with (
        tempfile.TemporaryDirectory() as profile,
        browser.browse(browser.program(), Path(profile)) as page,
    ):
        page.size(1180, 300, dark=dark)
        page.open(url)
        page.wait("document.getElementById('model').value")
        page.wait("fetch('ready').then((answer) => answer.ok)", 120)  # it has measured its costs
        page.press("Enter", browser.CTRL | browser.SHIFT)
        page.wait("!document.getElementById('verdict').hidden", 120)
        page.js("document.activeElement.blur()")
        page.screenshot(picture)
        for side in ("with", "without"):
            print(page.js(f"document.getElementById({side!r}).innerText"))
        print(page.js("document.getElementById('verdict').innerText"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model-name", default="SmolLM2-135M-Instruct")
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    command = ["-m", "specplug", "serve", str(arguments.bundle), "--port", "0"]
    command += ["--model-name", arguments.model_name]
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        take(server.stdout.readline().strip(), arguments.picture, dark=arguments.dark)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
