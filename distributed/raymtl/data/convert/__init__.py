"""Public data sets from their official raw form to parquet that `raymtl prepare` reads. No Ray.

text.py reads delimited text block by block with line numbers, columns.py gives the blocks types,
row_groups.py writes them; each form has its own file, and forms.py knows them all. Memory is
bounded by a block of text and a row group, whatever the size of the files.
"""
