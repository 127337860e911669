"""graphile-worker: `run()` with 50 jobs at a time, told of new jobs by LISTEN/NOTIFY; bulk submit is `addJobs`."""

from benchmarks.peers.node_peer import NodePeer


class Adapter(NodePeer):
    name = "graphile-worker"
    settings = "run(concurrency 50), Node.js 22, LISTEN/NOTIFY, poll of 2 s"
    bulk = "addJobs"
