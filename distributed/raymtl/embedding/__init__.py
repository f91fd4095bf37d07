"""Embedding tables: a store of rows, local or sharded, its optimizers, and fields made of it."""
