"""The loops: what runs. No query is written here; every move is called from `lifecycle/`."""
