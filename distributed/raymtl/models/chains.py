"""Which task follows which, for models that relate tasks: ESMM and AITM."""

from raymtl.batch import InputShape
from raymtl.errors import InputError

Links = tuple[tuple[int, int], ...]
"""Pairs (task, the task after it); a task's link to the one before it precedes those after it."""


def links(num_tasks: int, given: tuple[int | None, ...] = ()) -> Links:
    """The links that the schema's `given` makes; where no task has one, the tasks' order.

    Several tasks may follow one, and a task that is linked to none stands alone.

    Args:
        given: per task the task before it, as in `InputShape`; empty means none.

    Raises:
        InputError: tasks are given each other in a circle.
    """
    if all(before is None for before in given):
        return tuple((task - 1, task) for task in range(1, num_tasks))
    reached = [task for task in range(num_tasks) if given[task] is None]
    found: list[tuple[int, int]] = []
    for before in reached:  # grows on the way
        after = [task for task in range(num_tasks) if given[task] == before]
        found += [(before, task) for task in after]
        reached += after
    if circle := sorted({*range(num_tasks)} - {*reached}):
        raise InputError(
            "tasks are given each other in a circle",
            "; ".join(f"task {task} given task {given[task]}" for task in circle),
            "chains with a first task, which has no `given` (tasks counted from 0)",
            "remove `given` from the task that comes first",
        )
    return tuple(found)


def require_binary(model: str, shape: InputShape) -> None:
    """Refuses to chain a task that is no event.

    Args:
        model: its name, for the error.

    Raises:
        InputError: a regression task is linked, or tasks are given each other in a circle.
    """
    linked = {task for link in links(shape.num_tasks, shape.given) for task in link}
    values = [t for t in sorted(linked) if shape.kinds and shape.kinds[t] == "regression"]
    if values:
        raise InputError(
            f"{model} cannot chain a regression task",
            f"kind: regression for {', '.join(shape.task_names[t] for t in values)}",
            "binary tasks wherever one follows another; where no task has `given`, the tasks "
            "follow each other in the schema's order",
            "name `given` for the binary tasks that follow another, or choose another model",
        )
