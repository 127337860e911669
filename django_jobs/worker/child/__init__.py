"""Child processes: how they are started and ended, what they and their parent say to each other, and jobs that run in one."""
