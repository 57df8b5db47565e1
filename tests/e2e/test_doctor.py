import json
import os
import subprocess
import sys
from pathlib import Path


def test_doctor_tries_this_machine_for_real(tmp_path: Path) -> None:
    """Probes in processes of their own: torch, every attention backend, an all-reduce, DeepSpeed."""
    command = [sys.executable, "-m", "megadeberta", "doctor", "--json", "--folder", str(tmp_path)]
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    examination = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in examination["findings"]}
    assert findings["attention cpu"]["found"] == "right"
    assert findings["gloo all-reduce"]["found"] == "right between 2 processes"
    assert findings["DeepSpeed"]["found"] == "imports"
    assert done.returncode == (2 if any(each["status"] == "problem" for each in findings.values()) else 0)
    assert list(tmp_path.iterdir()) == []
