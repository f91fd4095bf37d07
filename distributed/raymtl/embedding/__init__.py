"""Embedding tables: a store of rows, local or sharded, its optimizers, and the fields made of it."""
