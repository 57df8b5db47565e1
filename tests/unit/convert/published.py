"""Folders laid out like the published v3: discriminator and generator side by side, and a hub that serves them."""

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megadeberta.convert.export import export_checkpoint
from megadeberta.convert.formats.family import FileFormat, ModelKind

REPO = "owner/deberta-v3-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OURS = ("enhanced_mask_decoder", "key_bias", "legacy", "architectures", "dtype", "auto_map")
"""Keys that Microsoft's files do not have."""


def write_published_folder(run: Path, folder: Path, scratch: Path, *, rtd_head: bool = True) -> Path:
    """What microsoft/deberta-v3-* hold, of a run with two parts: two pickles, two configurations and the vocabulary."""
    folder.mkdir(parents=True)
    for kind, weights, config in (
        (ModelKind.DISCRIMINATOR, "pytorch_model.bin", "config.json"),
        (ModelKind.GENERATOR, "pytorch_model.generator.bin", "generator_config.json"),
    ):
        export = scratch / kind
        export_checkpoint(run, export, kind=kind, file_format=FileFormat.MICROSOFT)
        tensors = torch.load(export / "pytorch_model.bin", weights_only=True)
        kept = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.endswith("_weight") and (rtd_head or not name.startswith("mask_predictions."))
        }
        torch.save(kept, folder / weights)
        values = json.loads((export / "config.json").read_text())
        (folder / config).write_text(json.dumps({name: v for name, v in values.items() if name not in OURS}))
    shutil.copyfile(scratch / ModelKind.GENERATOR / "spm.model", folder / "spm.model")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    for unused in ("tf_model.h5", "rust_model.ot"):
        (folder / unused).write_bytes(b"0" * 4096)
    return folder


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub with one repository: its address, and the names of the files that were fetched."""
    fetched: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{REPO}"):
                names = sorted(entry.name for entry in folder.iterdir())
                if "/tree/" in path:
                    rows = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": n} for n in names]
                    return self._json(rows)
                if "/revision/" in path and path.rpartition("/")[2] not in ("main", COMMIT):
                    return self._error(404, "RevisionNotFound")
                return self._json({"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]})
            prefix = f"/{REPO}/resolve/{COMMIT}/"
            name = path.removeprefix(prefix)
            if not path.startswith(prefix) or not (folder / name).is_file():
                return self._error(401, "RepoNotFound")
            return self._file(folder / name)

        def _file(self, path: Path) -> None:
            content = path.read_bytes()
            self._head(200, {"ETag": f'"{path.name}"', "Content-Length": len(content), "X-Repo-Commit": COMMIT})
            if self.command == "GET":
                fetched.append(path.name)
                self.wfile.write(content)

        def _json(self, content: object) -> None:
            data = json.dumps(content).encode()
            self._head(200, {"Content-Type": "application/json", "Content-Length": len(data)})
            self.wfile.write(data)

        def _error(self, status: int, code: str) -> None:
            self._head(status, {"X-Error-Code": code, "Content-Length": 0})

        def _head(self, status: int, headers: dict[str, object]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
