"""The interop suite, read from top to bottom: peers up, the agent against them, one table. Started by `run`."""
import os
import signal
import sys
import traceback

from interop import by_hand, peers, story
from interop.table import Table


def main():
    # As first process of its namespace nothing ends us by default; `run` passes a Ctrl-C on as SIGTERM.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    setup, table = peers.Setup(), Table()
    ok = False
    try:
        setup.start()
        peers.look(setup, table)
        if "--peers-only" in sys.argv:
            by_hand.stay(setup)
        else:
            story.tell(setup, table, os.environ["AGENT_BIN"])
    except Exception as failure:
        table.check("the suite itself comes to its end", "yes", f"{type(failure).__name__}: {failure}", ok=False)
        traceback.print_exc()
    finally:
        setup.processes.end_all()
        ok = table.print()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
