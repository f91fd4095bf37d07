"""Ray Tune searches expert counts, gates and any other key of a training config.

config.py     TuneConfig: what is searched, how, and judged by what
space.py      distributions of single keys, and points drawn from all of them
checks.py     what is refused before any trial
objective.py  a number from the metrics of a validation: `value`
records.py    the study folder; a record of each trial that came to its end, which is the truth
search.py     Ray Tune's searchers and schedulers, gone on with from the records
shared.py     the decoded log in Ray's object store
trial.py      one trial, in its own process or on a worker group
watch.py      what the driver does as trials come and go: records, checkpoints, budgets
conduct.py    a study from its config to its results: `conduct`
results.py    trials.parquet, best.yaml, result.json
effects.py report.py plots.py   what parameters did; report.html
"""
