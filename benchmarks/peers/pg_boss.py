"""pg-boss: `work()` in batches of 50, told of new jobs by LISTEN/NOTIFY (`useListenNotify`); bulk submit is `insert`."""

from benchmarks.peers.node_peer import NodePeer


class Adapter(NodePeer):
    name = "pg-boss"
    settings = "work(batchSize 50), useListenNotify, poll of 0.5 s, Node.js 22"
    bulk = "insert(lists)"
