"""What the report shows of each part of the benchmark: which figures, which way is better, what is compared with what."""

from dataclasses import dataclass
from typing import Any

HOME = "django_jobs"
STORES = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "mariadb": "MariaDB", "redis": "Redis"}


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One part: its first figure is compared; each of `drawn` gets a chart.

    Without `base`, every line is compared with django_jobs on its store; with one, with the line that has those options.
    """

    title: str
    figure: str
    extra: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    more_is_better: bool = True
    base: tuple[str, Any] | None = None

    @property
    def charts(self) -> tuple[str, ...]:
        return self.drawn or (self.figure,)


MEASURES = {
    "drain": Measure(title="Drain of no-op jobs", figure="jobs_per_second", extra=("worker_cpu_us", "server_cpu_us")),
    "submit": Measure(title="Submit", figure="jobs_per_second"),
    "latency": Measure(
        title="Idle pickup",
        figure="from call p50 ms",
        extra=("from call p99 ms", "from commit p50 ms", "from commit p99 ms"),
        drawn=("from call p50 ms", "from call p99 ms"),
        more_is_better=False,
    ),
    "io": Measure(
        title="I/O jobs of 10 ms", figure="jobs_per_second", extra=("of_ideal", "worker_cpu_us", "server_cpu_us")
    ),
    "retries": Measure(
        title="Retries",
        figure="runs_per_second",
        extra=("jobs_per_second", "worker_cpu_us", "server_cpu_us"),
        base=("failures", 0),
    ),
    "graph": Measure(
        title="Dependencies",
        figure="jobs_per_second",
        extra=("worker_cpu_us", "server_cpu_us"),
        base=("shape", "plain"),
    ),
    "idle": Measure(
        title="One idle worker process",
        figure="pss_mib",
        extra=("rss_mib", "processes", "statements_per_second", "unit", "worker_cpu_ms_per_second"),
        drawn=("pss_mib", "statements_per_second"),
        more_is_better=False,
    ),
    "growth": Measure(
        title="Growth: drain of no-op jobs",
        figure="jobs_per_second",
        extra=("pruned_per_second", "worker_cpu_us", "server_cpu_us"),
        base=("state", "empty"),
    ),
    "snapshot": Measure(
        title="Drain beside an old snapshot",
        figure="of_clean",
        extra=("clean_jobs_per_second", "jobs_per_second", "worker_cpu_us", "server_cpu_us"),
        drawn=("of_clean",),
    ),
    "pressure": Measure(
        title="Under pressure",
        figure="pressed_of_clean",
        extra=(
            "recovered_of_clean",
            "clean p99 ms",
            "pressed p99 ms",
            "recovered p99 ms",
            "not_started",
            "dead_rows",
            "table_mib",
            "index_mib",
        ),
    ),
    "claim": Measure(
        title="One claim beside a backlog",
        figure="p99 ms",
        extra=("p50 ms",),
        drawn=("p99 ms", "p50 ms"),
        more_is_better=False,
        base=("backlog", 1_000),
    ),
    "tuning": Measure(
        title="Settings of the table under steady load",
        figure="jobs_per_second",
        extra=("server_cpu_us", "table_mib", "index_mib", "dead_rows", "vacuums"),
        base=("setting", "defaults"),
    ),
    "machines": Measure(
        title="Worker hosts on one PostgreSQL",
        figure="jobs_per_second",
        extra=(
            "least_share",
            "longest_gap_ms",
            "connections",
            "commits_per_job",
            "server_cpu_us",
            "worker_cpu_us",
            "wal_bytes_per_job",
        ),
        base=("workers", 2),
    ),
    "waiting": Measure(
        title="Waiting worker processes, each",
        figure="statements_per_second",
        extra=("server_cpu_ms_per_second", "commits_per_second", "wal_bytes_per_second", "connections"),
        drawn=("server_cpu_ms_per_second",),
        more_is_better=False,
        base=("workers", 2),
    ),
    "servers": Measure(
        title="Queues spread over several servers",
        figure="jobs_per_second",
        extra=("least_share", "first_of_last", "others_of_before", "back_seconds", "not_completed"),
        base=("servers", 1),
    ),
    "claimers": Measure(
        title="Claimers on one queue",
        figure="jobs_per_second",
        extra=("least_claimers_share", "rows_per_job"),
        drawn=("jobs_per_second",),
        base=("claimers", 2),
    ),
    "wakeups": Measure(
        title="Notifications to many waiting processes",
        figure="wakeups_per_second",
        extra=("jobs_per_second", "notifications_per_second", "wait p50 ms", "wait p99 ms"),
        more_is_better=False,
        base=("workers", 64),
    ),
}

COLUMNS = {
    "jobs_per_second": "jobs/s",
    "runs_per_second": "starts/s",
    "worker_cpu_us": "worker CPU, µs/job",
    "server_cpu_us": "server CPU, µs/job",
    "of_ideal": "of the ideal",
    "pressed_of_clean": "pressed ÷ clean",
    "recovered_of_clean": "recovered ÷ clean",
    "not_started": "never started",
    "of_clean": "of the clean rate",
    "clean_jobs_per_second": "clean, jobs/s",
    "pss_mib": "PSS, MiB",
    "rss_mib": "RSS, MiB",
    "statements_per_second": "statements/s",
    "worker_cpu_ms_per_second": "worker CPU, ms/s",
    "server_cpu_ms_per_second": "server CPU, ms/s",
    "pruned_per_second": "pruned/s",
    "table_mib": "table, MiB",
    "index_mib": "indexes, MiB",
    "dead_rows": "dead rows",
    "least_share": "least host's share of a fair part",
    "first_of_last": "first server empty ÷ last",
    "others_of_before": "rate of the others meanwhile ÷ before",
    "back_seconds": "from its return to its next job, s",
    "not_completed": "not completed",
    "least_claimers_share": "least claimer's share of a fair part",
    "rows_per_job": "rows fetched/job",
    "wakeups_per_second": "wake-ups of sessions/s",
    "notifications_per_second": "notifications/s",
    "longest_gap_ms": "longest pause of a process, ms",
    "commits_per_second": "transactions/s",
    "wal_bytes_per_second": "log, bytes/s",
    "commits_per_job": "commits/job",
    "wal_bytes_per_job": "log, bytes/job",
}

# Options that say which line of a table it is; the others say which table.
IN_LABEL = (
    "job",
    "state",
    "failures",
    "shape",
    "backlog",
    "setting",
    "hosts",
    "workers",
    "servers",
    "finished",
    "through",
    "claimers",
)
REFERENCES = {"orm": "single", "copy": "bulk"}  # ways to submit that belong to another way's table
JOBS = {"tick": "", "nap": "threads", "anap": "coroutines"}


def label(measure: str, case: dict[str, Any]) -> str:
    """Return the name of a line."""
    options = case["options"]
    if options.get("way") in REFERENCES:
        return {"orm": "ORM `create()`", "copy": "COPY"}[options["way"]]
    if "servers" in options:
        return f"{options['servers']} server{'s' if options['servers'] > 1 else ''}, {options['hosts']} hosts"
    if "hosts" in options:
        through = f", {options['through']}" if options.get("through") else ""
        finished = f", {options['finished']:,} finished rows" if options.get("finished") else ""
        hosts = f"{options['hosts']} host{'s' if options['hosts'] > 1 else ''}"
        return f"{options['workers']} processes on {hosts}{finished}{through}"
    if "claimers" in options:
        return f"{options['claimers']} claimers"
    if measure == "wakeups":
        return f"{options['workers']} processes of one thread"
    if "state" in options:
        rows = f"{options['rows']:,} " if options["rows"] else ""
        held = f", {options['held']} s" if "held" in options else ""
        return f"{rows}{options['state'].replace('_', ' ')}{held}"
    if "failures" in options:
        return ("no failure", "one failure each", "two failures each")[options["failures"]]
    if "backlog" in options:
        return f"backlog of {options['backlog']:,}"
    if "shape" in options or "setting" in options:
        return str(options.get("shape") or options.get("setting"))
    name = case.get("label", case["peer"])
    job = JOBS.get(options.get("job", "tick"), options.get("job"))
    return f"{name} ({job})" if job else name


def group(measure: str, case: dict[str, Any], quiet: tuple[str, ...]) -> str:
    """Return the heading of the table that a case belongs to; empty when the part has one table."""
    shown = {key: value for key, value in case["options"].items() if key not in quiet and key not in IN_LABEL}
    if shown.get("way") in REFERENCES:
        shown["way"] = REFERENCES[shown["way"]]
    if measure == "machines":
        shown["of"] = {"tick": "No-op jobs", "nap": "Jobs that wait 10 ms"}[case["options"]["job"]]
    if measure == "pressure":
        shown = {"of": case["options"]["pressure"].replace("_", " ")}
    if measure == "servers":
        shown = {"of": {"drain": "No-op jobs", "outage": "Jobs of 10 ms, one server killed"}[case["options"]["act"]]}
    if measure == "claimers":
        shown = {"of": {"bare": "A bare loop", HOME: "Our moves"}[case["peer"]], **shown}
    words = {
        "of": "{}",
        "processes": "{} worker process" + ("es" if shown.get("processes") != 1 else ""),
        "batch": "{} at a time",
        "concurrency": "{} at a time",
        "rest": "after {} s without a job",
        "way": "{}",
        "before": "after {:,} jobs",
    }
    return ", ".join(words.get(key, f"{key} {{}}").format(value) for key, value in shown.items())
