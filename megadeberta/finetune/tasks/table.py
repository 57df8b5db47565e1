"""The table of tasks."""

import difflib

from megadeberta.errors import ConfigError
from megadeberta.finetune.task import Task
from megadeberta.finetune.tasks.conll import CONLL
from megadeberta.finetune.tasks.glue import GLUE
from megadeberta.finetune.tasks.own import OWN
from megadeberta.finetune.tasks.reading import READING
from megadeberta.finetune.tasks.superglue import SUPERGLUE

TASKS: dict[str, Task] = {task.name: task for task in (*GLUE, *SUPERGLUE, *READING, *CONLL, *OWN)}


def find_task(name: str) -> Task:
    """The task of a name, in whatever case.

    Raises:
        ConfigError: there is none.
    """
    wanted = name.lower()
    if wanted in TASKS:
        return TASKS[wanted]
    near = difflib.get_close_matches(wanted, TASKS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"no task {name!r}; {hint}known: {', '.join(TASKS)}")
