"""An sbatch script that saves before its time is up and goes back into the queue."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from megadeberta.errors import EXIT_PREEMPTED, ConfigError

_TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks_per_node}
#SBATCH --gpus-per-node={tasks_per_node}
#SBATCH --time={time_limit}
#SBATCH --signal=B:USR1@{notice_seconds}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log

# Slurm sends USR1 to this shell only; the ranks save a checkpoint when they hear it and exit with {preempted}.
# --wait: a task that crashed takes the others with it after a minute, one that has saved waits for them.
srun --kill-on-bad-exit=0 --wait=60 {command} &
step=$!
trap 'told=1; scancel --signal=USR1 "$SLURM_JOB_ID.0"' USR1
trap 'told=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM

code=127
while :; do
    told=0
    wait "$step"
    now=$?
    [ "$now" -ne 127 ] && code=$now # 127: its code was given out already
    [ "$told" -eq 0 ] && break      # else wait was only interrupted by the signal
done
if [ "$code" -eq {preempted} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclass(frozen=True)
class SlurmJob:
    """What the script asks Slurm for. ``notice_seconds``: time for one step and one checkpoint."""

    name: str
    nodes: int
    tasks_per_node: int
    time_limit: str = "24:00:00"
    notice_seconds: int = 180


def render_sbatch(job: SlurmJob, command: Sequence[str]) -> str:
    """The text of the script; ``command`` is what each task runs.

    Raises:
        ConfigError: no nodes or no tasks.
    """
    if job.nodes < 1 or job.tasks_per_node < 1:
        raise ConfigError(
            f"a Slurm job of {job.nodes} node(s) with {job.tasks_per_node} rank(s) each starts nothing; give at least 1"
        )
    return _TEMPLATE.format(
        name=job.name,
        nodes=job.nodes,
        tasks_per_node=job.tasks_per_node,
        time_limit=job.time_limit,
        notice_seconds=job.notice_seconds,
        preempted=EXIT_PREEMPTED,
        command=shlex.join(command),
    )
