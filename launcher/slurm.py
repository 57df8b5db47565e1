"""An sbatch script that goes back into the queue: after it has saved before its time was up, and after a lost rank."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megadeberta.checkpoint.folder import CHECKPOINTS_FOLDER
from megadeberta.config.terminal import wrap_command
from megadeberta.errors import EXIT_HUNG, EXIT_PEER_LOST, EXIT_PREEMPTED, ConfigError
from megadeberta.launcher.restart import MOST_RESTARTS

_WIDTH = 80
"""Columns of the script, whose lines are whole in any terminal and editor."""

_INDENT = "    "

_TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks_per_node}
#SBATCH --gpus-per-node={tasks_per_node}
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time={time_limit}
#SBATCH --signal=B:USR1@{notice_seconds}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log

# Slurm sends USR1 to this shell only; the ranks save a checkpoint when they
# hear it and exit with {preempted}. --wait: a task that crashed takes the others
# with it after a minute, one that has saved waits for them. --label: every line
# begins with the number of its task. The nodes are whole ones (--exclusive,
# --mem=0), and each task gets its share of their cores, where Slurm would give
# it one.
cores=$((${{SLURM_CPUS_ON_NODE:-0}} / {tasks_per_node}))
[ "$cores" -gt 0 ] || cores=1
srun --label --cpus-per-task="$cores" --kill-on-bad-exit=0 --wait=60 \\
    {command} &
step=$!
trap 'told=1; scancel --signal=USR1 "$SLURM_JOB_ID.0"' USR1
trap 'told=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM

# In a row without a new checkpoint; progress starts the count again.
most_losses={most_losses}
output={output}
newest() {{ cat "$output/{checkpoints}/latest" 2>/dev/null || echo none; }}

code=127
while :; do
    told=0
    wait "$step"
    now=$?
    [ "$now" -ne 127 ] && code=$now # 127: its code was given out already
    [ "$told" -eq 0 ] && break      # else a signal interrupted the wait
done
again=0
case "$code" in
{preempted}) again=1 ;;
# A rank or a machine is gone or hangs: its own code, or the signal that ended
# it (KILL, USR1 before it listened, TERM, BUS).
{peer_lost} | {hung} | 135 | 137 | 138 | 143)
    counted="$output/losses-{name}"
    read -r at losses 2>/dev/null <"$counted" || losses=0
    [ "$at" = "$(newest)" ] || losses=0
    losses=$((losses + 1))
    since="since checkpoint $(newest)"
    if [ "$losses" -le "$most_losses" ] && mkdir -p "$output" &&
        echo "$(newest) $losses" >"$counted"; then
        again=1
        echo "a rank was lost (exit code $code); queued again," \\
            "loss $losses of $most_losses $since"
    else
        echo "a rank was lost (exit code $code)" \\
            "$losses times $since; not queued again" >&2
    fi
    ;;
esac
if [ "$again" -eq 1 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclass(frozen=True)
class SlurmJob:
    """What the script asks Slurm for.

    output_dir: of the run. notice_seconds: time for one step and one checkpoint. most_losses: how often the job may go
    back into the queue after a lost rank, without a new checkpoint in between.
    """

    name: str
    output_dir: Path
    nodes: int
    tasks_per_node: int
    time_limit: str = "24:00:00"
    notice_seconds: int = 180
    most_losses: int = MOST_RESTARTS


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
        peer_lost=EXIT_PEER_LOST,
        hung=EXIT_HUNG,
        most_losses=job.most_losses,
        output=shlex.quote(str(job.output_dir)),
        checkpoints=CHECKPOINTS_FOLDER,
        command=wrap_command(command, _WIDTH - len(_INDENT), indent=2 * _INDENT),
    )
