"""The tasks by name."""

from __future__ import annotations

from fastadv.tasks.classification import Classification
from fastadv.tasks.ner import NamedEntities
from fastadv.tasks.task import Task

_ALL: tuple[Task, ...] = (Classification(), NamedEntities())
TASKS = {task.name: task for task in _ALL}


def task_of(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: There is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task is {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]
