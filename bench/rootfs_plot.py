"""The table and the plot of `rootfs.py`. The plot is written by hand: bars on a logarithmic scale are thirty lines, and need no library."""

from __future__ import annotations

import math
from typing import Any


def columns(result: dict[str, Any], name: str) -> dict[str, float]:
    """A transport's figures by their titles in the table."""
    row = result["transports"][name]
    found = {}
    for kind, prepared in result["preparation_ms"][result["private"][name]].items():
        found |= {
            f"prepare {count}, {kind} ms": times["wall_ms"] for count, times in prepared.items() if count.isdigit()
        }
    found |= {"first byte ms": row["first_byte_ms"], "first scan ms": row["first_scan_ms"]}
    for count, times in row["scan"].items():
        found |= {f"scan {count} ms": times["cold_ms"], f"read {count} ms": times["read_cold_ms"]}
    for job_name, job in row["fio"].items():
        found |= {f"{job_name} MB/s": job["mb_s"], f"{job_name} IOPS": job["iops"]}
    found |= {f"CPU {what} s": cpu for what, cpu in row["cpu_s"].items()}
    used = row["memory_mib"]
    found[f"memory of {used['containers']:.0f} VMs MiB"] = used["host"]
    found["dirtied of it MiB"] = used["dirtied_by_reading"]
    return found


def table(result: dict[str, Any], limits: dict[str, float]) -> str:
    """The measured as lines of text, a column a transport."""
    rows = {name: columns(result, name) for name, row in result["transports"].items() if "refused" not in row}
    lines = [" " * 22 + "".join(f"{name:>12}" for name in rows)]
    titles = next(iter(rows.values()), {})
    lines += [f"{title:22}" + "".join(f"{row[title]:12.1f}" for row in rows.values()) for title in titles]
    for private, kinds in result["preparation_ms"].items():
        for kind, some in kinds.items():
            lines += [
                f"{private} on {kind}, {how}: p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms, wall {row['wall_ms']} ms"
                for how, row in some.items()
            ]
    lines += [f"{name} left out: {row['refused']}" for name, row in result["transports"].items() if "refused" in row]
    for name, found in result["goals"].items():
        limit = next(limit for start, limit in limits.items() if name.startswith(start))
        lines.append(f"goal, {name}: {limit}; {found} {'reached' if found <= limit else 'MISSED'}")
    return "\n".join(lines)


def plot(result: dict[str, Any]) -> str:
    """Bars, each relative to 9p's (or the first row's), on a logarithmic scale: one decade is 80 units."""
    rows = {name: columns(result, name) for name, row in result["transports"].items() if "refused" not in row}
    if not rows:
        return '<svg xmlns="http://www.w3.org/2000/svg"/>\n'
    base = next(iter(rows.values()))
    colours = dict(zip(rows, ("#888", "#4477aa", "#ee6677", "#228833", "#ccbb44"), strict=False))
    shapes, y = [], 30
    for name, colour in colours.items():
        shapes.append(f'<text x="{20 + 110 * len(shapes)}" y="18" fill="{colour}">{name}</text>')
    for title, reference in base.items():
        shapes.append(f'<text x="190" y="{y + 6 * len(rows)}" text-anchor="end">{title}</text>')
        for name, row in rows.items():
            width = 80 * math.log10(row[title] / reference) if row[title] > 0 and reference > 0 else 0
            x = 400 + min(0.0, width)
            shapes.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(1.0, abs(width)):.1f}" height="9" fill="{colours[name]}"/>'
                f'<text x="620" y="{y + 8}" font-size="9">{row[title]:.1f}</text>'
            )
            y += 11
        y += 8
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="{y}" {style}>' + "\n".join(shapes) + "</svg>\n"
