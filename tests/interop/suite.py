"""The interop suite, read from top to bottom: peers up, the agent against them, one table. Started by `run`."""
import os
import signal
import sys
import traceback

from interop import by_hand, discovery, lockout, outage, peers, proxy, restarts, story, why
from interop.table import Table


STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stop(*_):
    for number in STOP:         # a Ctrl-C comes twice, from the terminal and from `run`: the second is not to cut the end short
        signal.signal(number, signal.SIG_IGN)
    sys.exit(130)


def main():
    for number in STOP:
        signal.signal(number, stop)
    setup, table = peers.Setup(), Table()
    only = sys.argv[sys.argv.index("--only") + 1:][:1] if "--only" in sys.argv else None
    sections = {"discovery": discovery, "outage": outage, "lockout": lockout, "why": why, "restarts": restarts, "proxy": proxy}
    if only and only[0] not in sections or only == []:
        sys.exit(f"suite: --only wants the name of a section: {', '.join(sections)}")
    ok = False
    try:
        setup.start()
        if not only:
            peers.look(setup, table)
        if "--peers-only" in sys.argv:
            by_hand.stay(setup)
        else:
            if not only:
                story.tell(setup, table, os.environ["AGENT_BIN"])
            for name, section in sections.items():
                if not only or name in only:
                    section.tell(setup, table, os.environ["AGENT_BIN"])
    except Exception as failure:
        table.check("the suite itself comes to its end", "yes", f"{type(failure).__name__}: {failure}", ok=False)
        traceback.print_exc()
    finally:
        setup.processes.end_all()
        ok = table.print()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
