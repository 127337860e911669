"""Take one measurement of one peer on one store, alone in this process, and print it as one JSON line.

`python -m benchmarks.child MEASURE PEER STORE OPTIONS`, with BENCH_DIR set; the suite calls it.
"""

import importlib
import json
import os
import sys


def main() -> None:
    measure, peer_name, kind, raw = sys.argv[1:5]
    os.environ |= {"BENCH_STORE": kind, "BENCH_PEER": peer_name}
    from benchmarks import stores, suite
    from benchmarks.peer import load_peer

    suite.end_in_order()
    options = json.loads(raw)
    store = stores.store(kind)
    stores.recreate(store)  # first: some peers make their tables when they are imported
    peer = load_peer(peer_name)(store, options.pop("load", "noop"))
    try:
        result = importlib.import_module(f"benchmarks.{measure}").measure(peer, **options)
    finally:
        stores.drop(store)
    about = {"label": peer.name, "settings": peer.settings, "bulk": peer.bulk, "versions": peer.versions()}
    print(json.dumps({"result": result, "about": about}), flush=True)
    os._exit(0)  # a peer's open pools and threads need no goodbye


if __name__ == "__main__":
    main()
