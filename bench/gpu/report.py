"""What the parts found, as Markdown, JSON and plots."""

import json
from pathlib import Path
from typing import Any

from bench.gpu.parts import PARTS


def write(folder: Path) -> bool:
    """Write `report.md`, `report.json` and a plot; return whether every part that ran was ok."""
    host = json.loads((folder / "host.json").read_text())
    found = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in PARTS
        if (folder / f"{name}.json").is_file()
    }
    (folder / "report.json").write_text(json.dumps({"host": host, **found}, indent=2) + "\n")
    (folder / "report.md").write_text(markdown(host, found))
    if buckets(found):
        _draw(host, found, folder / "speed.png")
    return all(part["ok"] for part in found.values())


def markdown(host: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        f"# GPU check: {host['device']}",
        "",
        ", ".join(f"{key} {value}" for key, value in host.items() if value),
    ]
    lines += ["", "| part | result | took [s] |", "| --- | --- | --- |"]
    for name, part in found.items():
        result = part.get("skipped") or part.get("error") or ("ok" if part["ok"] else "**failed**")
        lines.append(f"| {name} | {result} | {part['took_s']:.0f} |")
    makers = {"tests": _tests, "failures": _failures, "parity": _parity, "memory": _memory}
    makers |= {"speed": _speed, "robots": _robots, "http": _http}
    for name, maker in makers.items():
        if name in found and "skipped" not in found[name] and "error" not in found[name]:
            lines += ["", f"## {name.capitalize()}", "", *maker(found[name])]
    return "\n".join(lines) + "\n"


def _tests(part: dict[str, Any]) -> list[str]:
    return [part["summary"], *part["failed"]]


def _failures(part: dict[str, Any]) -> list[str]:
    lines = ["| what goes wrong | held | details |", "| --- | --- | --- |"]
    for name, case in part["cases"].items():
        details = ", ".join(f"{key} {value}" for key, value in case.items() if key != "ok")
        lines.append(f"| {name} | {'yes' if case['ok'] else '**no**'} | {details} |")
    return lines


def _parity(part: dict[str, Any]) -> list[str]:
    lines = [
        "Actions of the archive on this device against the eager model on the CPU, largest difference in",
        "normalised units, five requests in a batch and one alone.",
        "",
        "| architecture | format | precision | difference | graphs |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in part["cases"]:
        said = case.get("skipped") or case.get("error") or f"{case['difference']:.1e}"
        mark = "" if case.get("ok") or "skipped" in case else " **failed**"
        about = f"{case['architecture']} | {case['format']} | {case['precision']}"
        lines.append(f"| {about} | {said}{mark} | {'yes' if case.get('graphs') else 'no'} |")
    return lines


def _memory(part: dict[str, Any]) -> list[str]:
    values = ", ".join(f"{value:.1f}" for value in part["allocated_mib"])
    return [
        f"Allocated after each 1,000 of 10,000 batches [MiB]: {values}; reserved {part['reserved_mib']:.0f}."
    ]


def _speed(part: dict[str, Any]) -> list[str]:
    limits = ", ".join(f"{name} {value:.0f}" for name, value in part["ceilings"].items())
    lines = [
        f"Measured ceilings of the device: {limits}.",
        "A batch from prepared tensors on the host to actions on the host; the floor is the larger of its",
        "operations and one reading of its weights at these ceilings.",
        "",
        "| policy | precision | batch | with graph [ms] | without [ms] | rows/s | share of the floor |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for policy, bucket in buckets({"speed": part}):
        about = f"{policy['policy']} | {policy['precision']}{' (TF32)' if policy['tf32'] else ''}"
        lines.append(
            f"| {about} | {bucket['batch']} | {bucket['ms']:.2f} | {bucket['eager_ms']:.2f} | "
            f"{bucket['hz']:.0f} | {100 * bucket['of_floor']:.0f} % |"
        )
    failed = [one for one in part["policies"] if "buckets" not in one]
    return lines + [
        f"\n{one['policy']} {one['precision']}: {one.get('error') or one.get('skipped')}" for one in failed
    ]


def _robots(part: dict[str, Any]) -> list[str]:
    lines = [
        f"One process, 640 x 480 JPEG pictures, decoding included, {part['tier']}.",
        "",
        "| policy | robots at 10 Hz |",
        "| --- | --- |",
    ]
    for name, found in part["policies"].items():
        lines.append(f"| {name} | {found.get('robots', found.get('skipped'))} |")
    return lines


def _http(part: dict[str, Any]) -> list[str]:
    lines = [
        f"TorchServe, one worker ({part['worker']}), clients on the same host, 640 x 480 JPEG in msgpack;",
        f"largest difference from the same archive in process {part['largest_difference']:.1e}.",
        "",
        "| clients | requests/s | p50 [ms] | p95 [ms] | failed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for phase in part["load"]:
        figures = ("clients", "rate_hz", "p50_ms", "p95_ms", "failed")
        lines.append("| " + " | ".join(str(phase[name]) for name in figures) + " |")
    swap = part["swap"]
    return [
        *lines,
        "",
        f"Another version swapped in under 8 clients: {swap['says']}; {swap['requests']} requests, "
        f"{swap['failed']} failed, p95 {swap['p95_ms']} ms.",
    ]


def buckets(found: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each measured (policy, bucket)."""
    measured = found.get("speed", {}).get("policies", [])
    return [(policy, bucket) for policy in measured for bucket in policy.get("buckets", ())]


def _draw(host: dict[str, Any], found: dict[str, Any], path: Path) -> None:
    try:
        import matplotlib  # noqa: PLC0415

        matplotlib.use("Agg")
        from matplotlib import pyplot  # noqa: PLC0415
    except ImportError:
        return
    figure, axes = pyplot.subplots(figsize=(9.5, 4.5), layout="constrained")
    for policy in found["speed"]["policies"]:
        if "buckets" not in policy:
            continue
        name = f"{policy['policy']} {policy['precision']}{' TF32' if policy['tf32'] else ''}"
        sizes = [bucket["batch"] for bucket in policy["buckets"]]
        (line,) = axes.plot(sizes, [bucket["ms"] for bucket in policy["buckets"]], "o-", label=name)
        axes.plot(sizes, [bucket["eager_ms"] for bucket in policy["buckets"]], ":", color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="observations in a batch", ylabel="time of a batch [ms]")
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axes.set_title(f"{host['device']}: with CUDA graphs (lines) and without (dotted)")
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=110)
