"""The artifact: a checkpoint as one folder, and the one file that scores requests with it."""
