"""`carebus demo`: a sample day through the whole of Carebus on this machine, watched and then verified."""
