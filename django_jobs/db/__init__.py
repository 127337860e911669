"""How we speak to the jobs' database, said once: its connections, transactions, errors, notifications and dialects."""
