"""What to run: the `raymtl` command line, one thin file per verb, and the shipped configs."""
