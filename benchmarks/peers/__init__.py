"""One file per job queue: its jobs, its best documented settings, how to submit and how to start workers."""
