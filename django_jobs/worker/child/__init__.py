"""Child processes: how they are started and ended, the protocol between parent and child, and the jobs that run alone in one."""
