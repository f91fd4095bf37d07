"""raymtl: multi-task recommenders with task-specific embeddings on industrial logs, on Ray.

The map, in the order a batch travels:
    config       TrainConfig and its parts; YAML and dotted overrides
    schema       LogSchema: what a log's columns mean
    batch        Batch, Inputs and the legend of shapes; layout, their columns, without torch
    data         log (files, row groups), order (which rows when), stream (a rank's rows of some
                 steps), decode, lanes, ingest and reading (Ray Data and what its tasks run), feed
                 (a process beside each rank that gives its batches); prepare makes a training log
                 from raw files, synthetic one with a known answer
    embedding    tables (the local reference), sharded (rows split over ranks), optimizers
    models       one file per paper; registry picks one by name
    losses       masked sums per task
    metrics      AUC, GAUC, log loss, calibration; histograms for training
    collectives  the only file that talks to other ranks
    checkpoint   shards first, manifest last; loads at any world size
    trainer      the training loop, one straight line, no Ray in it
    evaluator    one pass over a log with a checkpoint; predict writes its scores
    launch       TrainConfig to Ray Train workers
    loaded       a checkpoint's model in this process
    artifact     export: a checkpoint as one folder; scorer scores with it and imports nothing else

Imports go one way: jobs and tuning, artifact, launch, trainer and evaluator, the parts,
collectives; all may
import batch, layout, schema, config, errors. tests/test_layout.py holds it.

What a program calls stands in api and is imported at first use:
    raymtl.train(config, "key=value")   raymtl.evaluate(run, log)   raymtl.load(run).predict(table)
    raymtl.export(run, out)             raymtl.register_model(name, cls)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymtl.api import Model, evaluate, export, load, register_model, train

__all__ = ["Model", "evaluate", "export", "load", "register_model", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module raymtl has no attribute {name}")
    from raymtl import api

    return getattr(api, name)
