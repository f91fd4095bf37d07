"""Search of expert counts and gates with Ray Tune: spaces, objective, search and report."""
