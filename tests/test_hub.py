"""Hub ids as sources, against a server that speaks as much of the Hub's protocol as is needed."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from specplug import Bundle
from tests_support.command import specplug
from tests_support.folders import shard, swapped

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "team/tiny-llama"


class Hub(ThreadingHTTPServer):
    """Serves one folder as REPOSITORY; ``cut`` ends the first download of the weights halfway."""

    def __init__(self, folder: Path, *, cut: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.cut = cut
        self.served: list[tuple[str, str | None]] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/team/gated"):
            return self._refuse(403, "GatedRepo")
        names = [*sorted(p.name for p in self.server.folder.iterdir()), "pytorch_model.bin"]
        if path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            if path.rpartition("/")[2] not in ("main", "v1", COMMIT):
                return self._refuse(404, "RevisionNotFound")
            siblings = [{"rfilename": name} for name in names]
            return self._send({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings})
        if path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            return self._send(
                [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
            )
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        file = self.server.folder / name
        if name == path or not file.is_file():
            return self._refuse(404, "RepoNotFound")
        return self._send_file(file, body=body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, answer: object) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_file(self, file: Path, *, body: bool) -> None:
        whole, wanted = file.read_bytes(), self.headers.get("Range")
        first, _, last = (wanted or "bytes=0-").removeprefix("bytes=").partition("-")
        start = int(first)
        data = whole[: int(last) + 1] if last else whole
        if body:
            self.server.served.append((file.name, wanted))
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        if self.server.cut and file.suffix == ".safetensors":
            self.server.cut = False
            self.wfile.write(data[start : start + len(data) // 2])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(data[start:])


def without_scales(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def hub(tiny_source: Path) -> Iterator[Hub]:
    server = Hub(tiny_source)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def description(token: AddedToken) -> dict[str, object]:
    names = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    return {name: getattr(token, name) for name in names}


def export(
    source: str, bundle: Path, hub: Hub | None, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    endpoint = f"http://127.0.0.1:{hub.server_port}" if hub else "http://127.0.0.1:9"
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(bundle.parent / "cache"),
        "COLUMNS": "300",
        "NO_PROXY": "127.0.0.1",
    }
    return specplug(
        "export", source, "-o", bundle, *options,
        anew=("huggingface_hub", "specplug"), **(settings | environment),
    )  # fmt: skip


def test_a_snapshot_is_pinned_and_pickles_stay_there(hub: Hub, tmp_path: Path) -> None:
    done = export(f"{REPOSITORY}@v1", tmp_path / "made.bundle", hub)
    assert done.returncode == 0, done.stderr
    provenance = Bundle.open(tmp_path / "made.bundle").manifest.target.provenance
    assert provenance.source == REPOSITORY
    assert provenance.revision == COMMIT
    assert set(provenance.sha256) == {"config.json", "model.safetensors"}
    assert "pytorch_model.bin" not in {name for name, _ in hub.served}
    # Once there, it needs no network.
    again = export(f"{REPOSITORY}@{COMMIT}", tmp_path / "again.bundle", None, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr


def test_weights_that_do_not_belong_are_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    folder = hub.folder = Path(shutil.copytree(hub.folder, tmp_path / "repository"))
    stray = folder / "consolidated.safetensors"
    shutil.copyfile(folder / "model.safetensors", stray)
    names = shard(folder)
    done = export(f"{REPOSITORY}@v1", tmp_path / "two.bundle", hub)
    assert done.returncode == 0, done.stderr
    assert stray.name not in {name for name, _ in hub.served}
    provenance = Bundle.open(tmp_path / "two.bundle").manifest.target.provenance
    assert set(provenance.sha256) == {"config.json", *names}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swapped, "model.norm.weight is in model-0000"),
        (without_scales, "is stored as float8_e4m3fn, and config.json has no quantization_config"),
    ],
)
def test_a_plan_sees_what_is_wrong_before_a_download(
    spoil: Callable[[Path], None], message: str, hub: Hub, tmp_path: Path
) -> None:
    hub.folder = Path(shutil.copytree(hub.folder, tmp_path / "repository"))
    spoil(hub.folder)
    planned = export(REPOSITORY, tmp_path / "made.bundle", hub, "--plan", "--precision", "int4")
    assert planned.returncode == 1
    assert message in " ".join(planned.stderr.split())
    assert all(asked for name, asked in hub.served if name.endswith(".safetensors"))


def test_a_plan_of_a_head_that_may_be_the_embedding(hub: Hub, tmp_path: Path) -> None:
    """Whether the two are one is not known before the download."""
    hub.folder = Path(shutil.copytree(hub.folder, tmp_path / "repository"))
    tensors = load_file(hub.folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, hub.folder / "model.safetensors", metadata={"format": "pt"})
    planned = export(REPOSITORY, tmp_path / "made.bundle", hub, "--plan", "--precision", "int4")
    assert planned.returncode == 0, planned.stderr


def test_a_plan_downloads_no_weights(hub: Hub, tmp_path: Path) -> None:
    place = tmp_path / "made.bundle"
    planned = export(REPOSITORY, place, hub, "--plan", "--precision", "int4")
    assert planned.returncode == 0, planned.stderr
    weights = hub.folder / "model.safetensors"
    assert f"download {weights.stat().st_size / 1e3:.1f} kB" in " ".join(planned.stdout.split())
    assert all(asked for name, asked in hub.served if name == weights.name)  # its header alone
    here = export(str(hub.folder), place, hub, "--plan", "--precision", "int4")
    sizes = [
        [line for line in run.stdout.splitlines() if "model." in line] for run in (planned, here)
    ]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 2
    assert not place.exists()
    assert export(REPOSITORY, place, hub, "--precision", "int4").returncode == 0
    again = export(REPOSITORY, tmp_path / "other.bundle", hub, "--plan", "--precision", "int4")
    assert "\ndownload " not in again.stdout  # it is in the cache


def test_an_interrupted_download_does_no_harm(hub: Hub, tmp_path: Path) -> None:
    """The library takes up files of more than one block where they broke off."""
    hub.cut = True
    done = export(REPOSITORY, tmp_path / "made.bundle", hub)
    if done.returncode:  # it may also try again by itself
        assert "run it again to resume" in done.stderr
        done = export(REPOSITORY, tmp_path / "made.bundle", hub)
    assert done.returncode == 0, done.stderr
    assert [name for name, _ in hub.served].count("model.safetensors") > 1
    whole = hashlib.sha256((hub.folder / "model.safetensors").read_bytes()).hexdigest()
    provenance = Bundle.open(tmp_path / "made.bundle").manifest.target.provenance
    assert provenance.sha256["model.safetensors"] == whole


def test_a_tokenizer_of_several_files(hub: Hub, tmp_path: Path) -> None:
    """``vocab.json`` and ``merges.txt`` are fetched, and no other text file."""
    folder = tmp_path / "served"
    shutil.copytree(hub.folder, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    added = {str(i): description(t) for i, t in tokenizer.get_added_tokens_decoder().items()}
    settings |= {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added}
    settings |= {"unk_token": "<|end|>", "pad_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "notes.txt").write_text("not needed")
    hub.folder = folder
    done = export(REPOSITORY, tmp_path / "made.bundle", hub, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    served = {name for name, _ in hub.served}
    assert {"vocab.json", "merges.txt"} <= served
    assert "notes.txt" not in served
    part = Bundle.open(tmp_path / "made.bundle").tokenizer()
    assert part is not None
    text = "a fox <|user|>?"
    assert part.encode(text) == tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("source", "environment", "message"),
    [
        ("team/none", {}, "team/none is neither a file or folder here nor a repository"),
        ("team/gated", {}, "team/gated is gated: accept its conditions on the Hub"),
        (f"{REPOSITORY}@v9", {}, f"{REPOSITORY} has no revision 'v9'"),
        (REPOSITORY, {"HF_HUB_OFFLINE": "1"}, "not in the cache and the Hub cannot be reached"),
        (REPOSITORY, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the Hub cannot be reached"),
        ("no/such/thing", {}, "no/such/thing does not exist: give a .gguf file"),
    ],
)
def test_refusals(
    source: str, environment: dict[str, str], message: str, hub: Hub, tmp_path: Path
) -> None:
    done = export(source, tmp_path / "made.bundle", hub, **environment)
    assert done.returncode == 1
    assert message in done.stderr.replace("\n", " ")
    assert not (tmp_path / "made.bundle").exists()
