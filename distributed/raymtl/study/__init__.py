"""Models x seeds on one log: a small search for each model, then its seeds, then the comparison.

config.py   StudyConfig
plan.py     which runs a study is made of, and their names
cell.py     one run, as a Ray task
conduct.py  the study itself: `conduct`
"""
