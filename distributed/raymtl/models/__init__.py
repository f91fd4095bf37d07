"""The models, one file per paper; `registry` picks one by name, `blocks` holds what they share."""
