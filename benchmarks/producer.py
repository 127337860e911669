"""Submit numbered jobs at a steady rate until stopped: `python -m benchmarks.producer RATE FIRST`, with BENCH_DIR set.

It writes `<number> <time>` of each submit that was answered to `<pid>.submits`. A submit that fails is not counted; the harness
starts another producer when this one ends.
"""

import os
import sys
import time

from benchmarks import stores, suite
from benchmarks.peer import load_peer


def main() -> None:
    suite.end_in_order()
    rate, number = float(sys.argv[1]), int(sys.argv[2])
    peer = load_peer(os.environ["BENCH_PEER"])(stores.current())
    peer.connect()
    submit = peer.submitter("stamp")
    began = time.monotonic()
    with open(stores.run_dir() / f"{os.getpid()}.submits", "a", buffering=1) as log:
        for place in range(sys.maxsize):
            time.sleep(max(0.0, began + place / rate - time.monotonic()))
            now = time.monotonic()
            submit(number + place)
            log.write(f"{number + place} {now!r}\n")


if __name__ == "__main__":
    main()
