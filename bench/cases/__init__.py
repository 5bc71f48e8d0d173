"""One file a case: add one, and it is measured, reported and compared with the rest."""
