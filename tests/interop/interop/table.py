"""The one table at the end."""
import sys


class Table:
    def __init__(self):
        self.rows = []
        self.subject = ""

    def about(self, subject):
        self.subject = subject
        print(f"\n== {subject}", flush=True)

    def check(self, what, expected, seen, ok=None):
        ok = expected == seen if ok is None else bool(ok)
        self.rows.append((self.subject, what, str(expected), str(seen), "ok" if ok else "FAIL"))
        print(f"   {'ok  ' if ok else 'FAIL'} {what}: {seen}" + ("" if ok else f" (expected {expected})"), flush=True)
        return ok

    def check_series(self, what, expected, seen):
        """Two maps of series → value: everything that is expected, nothing else."""
        wrong = [f"{show(k)}: {show_value(seen.get(k))}, not {show_value(v)}" for k, v in expected.items() if seen.get(k) != v]
        wrong += [f"{show(k)}: {show_value(v)}, not expected" for k, v in seen.items() if k not in expected]
        if wrong:
            told = f"{len(wrong)} differ, e.g. {wrong[0]}"
            for line in wrong[:10]:
                print(f"        {line}")
        else:
            told = "the same"
        return self.check(what, f"{len(expected)} series", told, ok=not wrong)

    def print(self):
        head = ("what", "expected", "seen", "")
        limits = (90, 40, 60, 4)
        cells = [[shorten(c, w) for c, w in zip(row[1:], limits)] for row in self.rows]
        widths = [max(len(r[i]) for r in cells + [list(head)]) for i in range(4)]
        line = lambda row: "  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip()
        print("\n" + line(head))
        print("  ".join("-" * w for w in widths))
        subject = None
        for row, cell in zip(self.rows, cells):
            if row[0] != subject:
                subject = row[0]
                print(f"[{subject}]")
            print(line(cell))
        failed = [row for row in self.rows if row[4] == "FAIL"]
        for _, what, expected, seen, _ in failed:
            if len(expected) > limits[1] or len(seen) > limits[2]:
                print(f"\nFAIL {what}\n  expected: {expected}\n  seen:     {seen}")
        print(f"\n{len(self.rows)} checks, {len(failed)} failed")
        sys.stdout.flush()
        return not failed


def show(key):
    return key[0] + "{" + ",".join(f'{k}="{v}"' for k, v in key[1]) + "}"


def show_value(value):
    return "missing" if value is None else f"{value:g}"


def shorten(text, width):
    text = " ".join(text.split())
    return text if len(text) <= width else text[:width - 1] + "…"
