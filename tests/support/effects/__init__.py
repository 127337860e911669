"""An app of the tests: job handlers that write down that they ran, so that runs can be counted."""
