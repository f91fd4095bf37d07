"""A log: its index, the order of its rows, decoding, lanes, Ray Data; making one."""
