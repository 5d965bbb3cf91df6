#!/usr/bin/env python3
"""Turns what `scripts/bench ROLE` measured into a table, ROLE.json, ROLE.svg and ROLE.txt."""

import argparse
import datetime
import html
import json
import os
import platform
import statistics

ROLES = {
    "udpgw": {
        "one": "1x1 W=1 64 B, one core",
        "bulk": "1x1 W=64 1400 B",
        "10x10": "10x10 W=8 200 B",
        "100x4": "100x4 W=4 200 B",
    },
    "pool": {
        "one": "1 flow W=1 64 B, one core",
        "bulk": "1 flow W=128 1200 B",
        "8x32": "8 flows W=32 1200 B",
        "wireguard": "through WireGuard, W=128 1200 B",
    },
    "rendezvous": {
        "forward": "forwarded port, W=1 64 B, one core",
        "forward-bulk": "forwarded port, W=64 1200 B",
        "chat": "chat, a line there and back",
        "256x1": "256 ports W=1",
        "64x16": "64 ports W=16",
    },
}
IDLE = "1000 idle clients"
DIRECT = "direct"
# What a replacement for badvpn-udpgw has to reach. badvpn itself: 3.4 times the echo server's CPU
# time at 10x10 with 0.4 to 2 % lost, 37 us against 14 at W=1, 21 MiB for 1000 idle clients.
CPU_RATIO_MAX = {"10x10": 1.6, "100x4": 2.4}
P50_RATIO_MAX = 2.8
IDLE_RSS_MIB_MAX = 24
# What both ends of a tunnel have to reach: CPU time of the echo server's with 128 in flight, and p50
# with one in flight on one core (80 us plain and 110 us TLS where direct takes 14). The Python
# program takes 42 times the echo server's CPU time with TLS, and has 217 us.
POOL_CPU_RATIO_MAX = {"plain": 3.5, "TLS": 5}
POOL_P50_RATIO_MAX = {"plain": 5.7, "TLS": 7.9}
POOL_LOST_PERCENT_MAX = 0.5
# One order of magnitude.
POOL_FLOOD_RATIO_MIN = 10
# STUN bindings per CPU second, coturn's being 1.
STUN_PER_CPU_RATIO_MIN = 2
# Where that is more than a bare echo server's, as much of that: two runs differ by as much.
BARE_ECHO_PART_MIN = 0.95
# From a member's start until it has met another one, on loopback.
CONNECT_P50_MS_MAX = 300
# More than this, of one core, used by others before we begin spoils the figures.
BUSY_PERCENT_MAX = 10
COLOURS = ["#888888", "#0b6e4f", "#6bbf59", "#c8553d", "#f28f3b", "#3d5a80", "#98c1d9"]
COLOURS += ["#7b2d8b", "#c39bd3", "#b7950b", "#f4d35e", "#5d4037", "#bcaaa4"]


def median_of(results, field):
    return statistics.median(result[field] for result in results)


def cpu_us_per_rt(result, path):
    """Of all that serves: the echo server alone, the gateway, or both ends of a tunnel."""
    if path == DIRECT:
        return result["echo_cpu_us_per_rt"]
    return result["gateway_cpu_us_per_rt"] + result["tunnel_cpu_us_per_rt"]


def summarise(runs, paths, workloads):
    """One row per workload and path with figures, in the order of measurement."""
    rows = []
    for workload, title in workloads.items():
        direct = None
        for path in paths:
            results = [
                run["result"]
                for run in runs
                if run["workload"] == workload and run["path"] == path and run["result"]
            ]
            if not results:
                continue
            lost = sum(result["lost"] for result in results)
            row = {
                "workload": workload,
                "title": title,
                "path": path,
                "rt_per_s": median_of(results, "rt_per_s"),
                "rt_per_s_min": min(result["rt_per_s"] for result in results),
                "rt_per_s_max": max(result["rt_per_s"] for result in results),
                "server_cpu_us_per_rt": statistics.median(
                    cpu_us_per_rt(result, path) for result in results
                ),
                "far_cpu_us_per_rt": median_of(results, "gateway_cpu_us_per_rt"),
                "near_cpu_us_per_rt": median_of(results, "tunnel_cpu_us_per_rt"),
                "echo_cpu_us_per_rt": median_of(results, "echo_cpu_us_per_rt"),
                "p50_us": median_of(results, "p50_us"),
                "p99_us": median_of(results, "p99_us"),
                "p999_us": median_of(results, "p999_us"),
                "lost": lost,
                "lost_percent": 100 * lost / max(1, lost + sum(r["round_trips"] for r in results)),
                "echo_drops": sum(result["echo_drops"] for result in results),
                "unexpected": sum(result["unexpected"] for result in results),
                "corrupt": sum(result["corrupt"] for result in results),
                "rss_kib": statistics.median(
                    result["gateway_rss_kib"] + result["tunnel_rss_kib"] for result in results
                ),
            }
            if path == DIRECT:
                direct = row
            if direct:
                row["rt_ratio"] = row["rt_per_s"] / direct["rt_per_s"]
                row["cpu_ratio"] = row["server_cpu_us_per_rt"] / direct["server_cpu_us_per_rt"]
                row["p50_ratio"] = row["p50_us"] / direct["p50_us"]
            rows.append(row)
    return rows


def idle_rows(runs):
    return [
        {"path": run["path"], **run["result"]}
        for run in runs
        if run["workload"] == "idle" and run["result"]
    ]


def flood_rows(runs, paths):
    """What a one-way flood delivered, for each path."""
    rows = []
    for path in paths:
        results = [
            run["result"]
            for run in runs
            if run["workload"] == "flood" and run["path"] == path and run["result"]
        ]
        if results:
            rows.append(
                {
                    "path": path,
                    "delivered_per_s": statistics.median(
                        result["delivered"] / result["seconds"] for result in results
                    ),
                    "sent_per_s": statistics.median(
                        result["sent"] / result["seconds"] for result in results
                    ),
                }
            )
    return rows


def connect_rows(runs):
    """How long members took to meet, for each path."""
    results = {}
    for run in runs:
        if run["workload"] == "connect" and run["result"]:
            results.setdefault(run["path"], []).append(run["result"])
    return [
        {
            "path": path,
            "connects": sum(result["connects"] for result in of_path),
            "p50_ms": median_of(of_path, "p50_ms"),
            "max_ms": max(result["max_ms"] for result in of_path),
        }
        for path, of_path in results.items()
    ]


def table(rows, idle, floods, connects):
    head = ["workload", "path", "rt/s", "of direct", "CPU us/rt", "(far + near)", "of echo"]
    head += ["p50 us", "p99 us", "p99.9 us", "lost %", "RSS MiB"]
    lines = [head]
    for row in rows:
        rss = row["rss_kib"]
        lines.append(
            [
                row["title"],
                row["path"],
                f"{row['rt_per_s']:,.0f}",
                f"{row['rt_ratio']:.2f}" if "rt_ratio" in row else "-",
                f"{row['server_cpu_us_per_rt']:.2f}",
                f"{row['far_cpu_us_per_rt']:.2f} + {row['near_cpu_us_per_rt']:.2f}"
                if row["near_cpu_us_per_rt"]
                else "-",
                f"{row['cpu_ratio']:.2f}" if "cpu_ratio" in row else "-",
                f"{row['p50_us']:,.1f}",
                f"{row['p99_us']:,.1f}",
                f"{row['p999_us']:,.1f}",
                f"{row['lost_percent']:.4f}" if row["lost"] else "0",
                f"{rss / 1024:.1f}" if rss else "-",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = []
    previous = None
    for line in lines:
        if previous not in (None, line[0]):
            text.append("")
        previous = line[0]
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ]
        text.append("  ".join(cells).rstrip())
    text.append("")
    for row in floods:
        text.append(
            f"one-way flood, {row['path']}: {row['delivered_per_s']:,.0f} datagrams/s delivered "
            f"of {row['sent_per_s']:,.0f} sent"
        )
    for row in connects:
        text.append(
            f"start to met, {row['path']}: p50 {row['p50_ms']:.0f} ms, at most {row['max_ms']:.0f} "
            f"ms, {row['connects']} times"
        )
    for row in idle:
        text.append(
            f"{IDLE}, {row['path']}: {row['gateway_rss_kib'] / 1024:.1f} MiB resident "
            f"({row['gateway_rss_empty_kib'] / 1024:.1f} with none), "
            f"{row['gateway_threads']} threads, {row['gateway_descriptors']} descriptors"
        )
    for row in rows:
        for what in ("corrupt", "unexpected", "echo_drops"):
            if row[what]:
                named = {
                    "corrupt": "answers were wrong",
                    "unexpected": "answers came twice or after 200 ms",
                    "echo_drops": "datagrams were lost by the server that answers, not by the path",
                }[what]
                text.append(f"note: {row['title']}, {row['path']}: {row[what]} {named}")
    return "\n".join(text)


def pool_bar(rows, floods):
    """The bar's points for our own pairs: (passed, text)."""
    points = []

    def point(passed, text):
        points.append({"passed": bool(passed), "text": text})

    for row in rows:
        name, _, rest = row["path"].partition(" ")
        mode, _, size = rest.partition(" ")
        if name != "udpferry" or "cpu_ratio" not in row:
            continue
        what = f"{row['path']}, {row['title']}"
        if row["workload"] == "bulk" and (size == "8" or mode == "plain"):
            point(
                row["cpu_ratio"] <= POOL_CPU_RATIO_MAX[mode],
                f"{what}: both ends {row['cpu_ratio']:.2f} times the echo server's CPU time "
                f"(at most {POOL_CPU_RATIO_MAX[mode]})",
            )
        if row["workload"] == "one":
            point(
                row["p50_ratio"] <= POOL_P50_RATIO_MAX[mode],
                f"{what}: p50 {row['p50_us']:.1f} us, {row['p50_ratio']:.2f} times direct "
                f"(at most {POOL_P50_RATIO_MAX[mode]})",
            )
        else:
            point(
                row["lost_percent"] <= POOL_LOST_PERCENT_MAX and row["corrupt"] == 0,
                f"{what}: {row['lost_percent']:.4f} % lost, {row['corrupt']} corrupt "
                f"(at most {POOL_LOST_PERCENT_MAX} %, none)",
            )
    delivered = {row["path"]: row["delivered_per_s"] for row in floods}
    for mode in ("plain", "TLS"):
        ours, theirs = delivered.get(f"udpferry {mode} 8"), delivered.get(f"python {mode} 8")
        if ours is not None and theirs is not None:
            point(
                ours >= POOL_FLOOD_RATIO_MIN * theirs and ours > 0,
                f"one-way flood, {mode}, pool 8: {ours:,.0f} datagrams/s delivered, python "
                f"{theirs:,.0f} (at least {POOL_FLOOD_RATIO_MIN} times)",
            )
    return points


def rendezvous_bar(rows, connects):
    """The bar's points: STUN bindings per CPU second beside coturn's, what is forwarded, and how soon
    members meet."""
    points = [
        {
            "passed": row["p50_ms"] <= CONNECT_P50_MS_MAX,
            "text": f"start to met, {row['path']}: p50 {row['p50_ms']:.0f} ms (at most "
            f"{CONNECT_P50_MS_MAX})",
        }
        for row in connects
    ]
    cpu = {(row["workload"], row["path"]): row["server_cpu_us_per_rt"] for row in rows}
    for row in rows:
        if row["workload"] == "chat":
            continue
        if row["path"] == "udpferry peer":
            points.append(
                {
                    "passed": row["corrupt"] == 0 and row["lost_percent"] <= POOL_LOST_PERCENT_MAX,
                    "text": f"{row['title']}: {row['lost_percent']:.4f} % lost (at most "
                    f"{POOL_LOST_PERCENT_MAX}), {row['corrupt']} wrong (none)",
                }
            )
        if row["path"] != "udpferry":
            continue
        theirs = cpu.get((row["workload"], "coturn"))
        bare = cpu.get((row["workload"], "bare echo"))
        if theirs and bare and row["server_cpu_us_per_rt"] > 0:
            ours = row["server_cpu_us_per_rt"]
            # Where receiving and sending alone take more than half of coturn's time, nobody is twice as fast.
            wanted = min(STUN_PER_CPU_RATIO_MIN, BARE_ECHO_PART_MIN * theirs / bare)
            points.append(
                {
                    "passed": theirs / ours >= wanted,
                    "text": f"{row['title']}: {1e6 / ours:,.0f} bindings per CPU second, coturn "
                    f"{1e6 / theirs:,.0f}: {theirs / ours:.2f} times (at least "
                    f"{STUN_PER_CPU_RATIO_MIN}, or as often as a bare echo server answers: "
                    f"{theirs / bare:.2f} times)",
                }
            )
        points.append(
            {
                "passed": row["corrupt"] == 0 and row["lost"] == 0,
                "text": f"{row['title']}: {row['lost']} lost, {row['corrupt']} wrong (none)",
            }
        )
    return points


def bar(rows, idle):
    """The bar's points for our own paths: (passed, text)."""
    points = []

    def point(passed, text):
        points.append({"passed": bool(passed), "text": text})

    ours = [row for row in rows if row["path"].startswith("udpferry")]
    for row in ours:
        if row["workload"] in CPU_RATIO_MAX and "cpu_ratio" in row:
            limit = CPU_RATIO_MAX[row["workload"]]
            point(
                row["cpu_ratio"] <= limit,
                f"{row['path']}, {row['title']}: {row['cpu_ratio']:.2f} times the echo server's "
                f"CPU time (at most {limit})",
            )
            point(
                row["lost"] == 0 and row["corrupt"] == 0,
                f"{row['path']}, {row['title']}: {row['lost']} lost, {row['corrupt']} corrupt "
                f"(none; {row['echo_drops']} dropped by the echo server)",
            )
        if row["workload"] == "one" and "p50_ratio" in row:
            point(
                row["p50_ratio"] <= P50_RATIO_MAX,
                f"{row['path']}, {row['title']}: p50 {row['p50_us']:.1f} us, "
                f"{row['p50_ratio']:.2f} times direct (at most {P50_RATIO_MAX})",
            )
    for row in idle:
        if row["path"].startswith("udpferry"):
            rss = row["gateway_rss_kib"] / 1024
            point(
                rss <= IDLE_RSS_MIB_MAX,
                f"{row['path']}, {IDLE}: {rss:.1f} MiB (at most {IDLE_RSS_MIB_MAX})",
            )
    return points


def svg(role, rows, paths, caption):
    """Two panels of grouped bars: round trips per second, and CPU time per round trip."""
    panel_height, bar_width, group_gap, left = 200, 26, 30, 70
    titles = ROLES[role]
    workloads = [workload for workload in titles if any(r["workload"] == workload for r in rows)]
    # Wide enough for a workload's name.
    shown = {
        workload: [path for path in paths if any((r["workload"], r["path"]) == (workload, path) for r in rows)]
        for workload in workloads
    }
    widths = [max(bar_width * len(shown[workload]) + group_gap, 170) for workload in workloads]
    width = left + sum(widths) + 20
    parts = []

    def text(x, y, content, anchor="middle", size=11):
        parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
            f"{html.escape(content)}</text>"
        )

    y = 24
    text(left, y, role + ": " + caption, "start", 12)
    for index, path in enumerate(paths):
        y += 18
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<rect x="{left}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        text(left + 18, y, path, "start")
    panels = [
        ("rt_per_s", "round trips per second (more is better)", "{:,.0f}"),
        ("server_cpu_us_per_rt", "CPU time but the echo server's, us per round trip (less is better)", "{:.1f}"),
    ]
    for field, title, form in panels:
        y += 34
        text(left, y, title, "start", 13)
        base = y + 16 + panel_height
        top = max(row[field] for row in rows) or 1
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{base}" y2="{base}" stroke="#333"/>')
        for group, workload in enumerate(workloads):
            x = left + sum(widths[:group])
            text(x + bar_width * len(shown[workload]) / 2, base + 16, titles[workload])
            for place, path in enumerate(shown[workload]):
                colour = COLOURS[paths.index(path) % len(COLOURS)]
                for row in rows:
                    if (row["workload"], row["path"]) != (workload, path):
                        continue
                    height = panel_height * row[field] / top
                    bar_x = x + place * bar_width
                    parts.append(
                        f'<rect x="{bar_x}" y="{base - height:.1f}" width="{bar_width - 3}" '
                        f'height="{height:.1f}" fill="{colour}"/>'
                    )
                    value = row[field]
                    label = f"{value / 1000:.0f}k" if field == "rt_per_s" else form.format(value)
                    text(bar_x + bar_width / 2, base - height - 4, label, size=9)
        y = base + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 16}" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("role", "runs", "paths", "out", "seconds", "took", "busy-percent", "commit"):
        parser.add_argument(f"--{option}", required=True)
    args = parser.parse_args()
    with open(args.runs, encoding="utf-8") as lines:
        runs = [json.loads(line) for line in lines]
    with open(args.paths, encoding="utf-8") as lines:
        commands = dict(line.rstrip("\n").split("\t", 1) for line in lines)
    paths = list(commands)
    rows = summarise(runs, paths, ROLES[args.role])
    if not rows:
        raise SystemExit("nothing was measured")
    idle = idle_rows(runs)
    floods = flood_rows(runs, paths)
    connects = connect_rows(runs)
    points = {
        "udpgw": lambda: bar(rows, idle),
        "pool": lambda: pool_bar(rows, floods),
        "rendezvous": lambda: rendezvous_bar(rows, connects),
    }[args.role]()
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": args.commit,
        "busy_percent_before": int(args.busy_percent),
    }
    repeats = max(run["run"] for run in runs)
    caption = (
        f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"{machine['date']}, {args.commit}"
    )
    note = f"medians of {repeats} interleaved runs of {args.seconds} s; took {args.took} s"
    text = [caption, note, "", table(rows, idle, floods, connects), "", "the bar:"]
    text += [f"  {'PASS' if p['passed'] else 'MISS'}  {p['text']}" for p in points]
    if machine["busy_percent_before"] > BUSY_PERCENT_MAX:
        busy = f"others used {args.busy_percent} % of a core before this began: run it again"
        text += ["", f"note: {busy}"]
    text = "\n".join(text) + "\n"
    print(text, end="")
    report = {
        "machine": machine,
        "seconds": float(args.seconds),
        "paths": commands,
        "summary": rows,
        "idle": idle,
        "connects": connects,
        "flood": floods,
        "bar": points,
        "runs": runs,
    }
    with open(os.path.join(args.out, f"{args.role}.json"), "w", encoding="utf-8") as out:
        json.dump(report, out, indent=1)
        out.write("\n")
    with open(os.path.join(args.out, f"{args.role}.svg"), "w", encoding="utf-8") as out:
        out.write(svg(args.role, rows, paths, caption))
    with open(os.path.join(args.out, f"{args.role}.txt"), "w", encoding="utf-8") as out:
        out.write(text)


if __name__ == "__main__":
    main()
