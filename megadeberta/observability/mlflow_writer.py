"""MLflow: the server of MLFLOW_TRACKING_URI, else a database in the output folder, OUTPUT/mlflow.db."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megadeberta.observability.tracker import TrackedRun

# A server that does not answer must not hold up the step for long; MLflow itself would wait for minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_PARAMETERS_AT_A_TIME, _LONGEST_PARAMETER = 100, 500
_FIRST_OF = {"train": "train/loss", "valid": "valid/valid_loss"}


class MlflowWriter:
    """One run over all starts; what it holds already is asked of the server."""

    def __init__(self, run: TrackedRun) -> None:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        address = os.environ.get("MLFLOW_TRACKING_URI") or _local_address(run.folder)
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=address)
        known = self._still_there(run.known_identity("mlflow"))
        self._run_id = known or run.remember("mlflow", self._create(run))
        self.last: Mapping[str, int] = {prefix: self._last(name) for prefix, name in _FIRST_OF.items()} if known else {}
        if known:
            self._client.update_run(self._run_id, status="RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Of one step, in one request."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """The run is not running any more; a resume opens it again."""
        self._client.set_terminated(self._run_id)

    def _still_there(self, identity: str | None) -> str | None:
        """None for a run that was deleted, alone or with its database: what it held is written into another."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_run(identity) if identity else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return identity if found and found.info.lifecycle_stage == "active" else None

    def _create(self, run: TrackedRun) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(run.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        identity: str = self._client.create_run(number, run_name=run.name).info.run_id
        parameters = [Param(name, str(value)[:_LONGEST_PARAMETER]) for name, value in _flat(run.settings)]
        for start in range(0, len(parameters), _PARAMETERS_AT_A_TIME):
            self._client.log_batch(identity, params=parameters[start : start + _PARAMETERS_AT_A_TIME])
        return identity

    def _last(self, name: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._run_id, name)), default=0)


def _local_address(folder: Path) -> str:
    """Of a database in the output folder. A sign with a meaning in addresses would put it elsewhere, or keep MLflow
    trying for minutes to open it."""
    path = folder.absolute() / "mlflow.db"
    if any(sign in str(path) for sign in "?#%"):
        raise ValueError(f"the address of {path} cannot be written, for one of ?, # and %; set MLFLOW_TRACKING_URI")
    return f"sqlite:///{path}"


def _flat(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value
