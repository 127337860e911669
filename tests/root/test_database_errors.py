"""What an error of a database means, where no server can be made to say it at will."""

import pytest
from django.db import DatabaseError, IntegrityError, OperationalError, ProgrammingError

from django_jobs.db.errors import is_away


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (OperationalError(1021, "Disk full (/tmp/#sql-temptable); waiting for someone to free some space"), True),
        (OperationalError(1114, "The table 'django_jobs_job' is full"), True),
        (OperationalError(2006, "Server has gone away"), True),
        (OperationalError(1054, "Unknown column 'x' in 'field list'"), False),
        (IntegrityError(1062, "Duplicate entry"), False),
        (ProgrammingError(1146, "Table 'x' doesn't exist"), False),
    ],
)
def test_which_errors_of_a_server_are_waited_for(error: DatabaseError, away: bool) -> None:
    assert is_away(error) is away
