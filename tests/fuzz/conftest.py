"""The table of the malformed inputs, at the end of the run that had them."""

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for name in ("passed", "failed") for r in terminalreporter.stats.get(name, [])]
    rows = [value for r in reports for name, value in getattr(r, "user_properties", []) if name == "fuzz"]
    if not rows:
        return
    columns = ("kind", "inputs", "refused", "valid", "faults", "seconds", "megabytes")
    total: dict[str, Any] = {"kind": "all", "seconds": 0.0, "megabytes": 0}
    for name in ("inputs", "refused", "valid"):
        total[name] = sum(row[name] for row in rows)
    total["faults"] = [fault for row in rows for fault in row["faults"]]
    for name in ("seconds", "megabytes"):
        total[name] = max(row[name] for row in rows)
    terminalreporter.section("malformed inputs")
    terminalreporter.write_line("".join(f"{name:>{20 if name == 'kind' else 11}}" for name in columns))
    for row in [*sorted(rows, key=lambda row: row["kind"]), total]:
        shown = row | {"faults": len(row["faults"]), "seconds": f"{row['seconds']:.1f}"}
        terminalreporter.write_line("".join(f"{shown[n]!s:>{20 if n == 'kind' else 11}}" for n in columns))
