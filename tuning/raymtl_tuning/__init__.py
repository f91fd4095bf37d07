"""Search of expert counts and gates with Ray Tune: spaces, the objective, the search, its report."""
