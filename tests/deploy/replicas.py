"""Archives of a handler that answers like a policy, and does what a request tells it."""

import json
import subprocess
import zipfile
from pathlib import Path

# Answers like a policy; fields of a request make it slow, refuse, kill its worker, or note what it computed.
HANDLER = """
import json, os, time

def handle(data, ctx):
    out = []
    for index, row in enumerate(data or []):
        time.sleep(float(row.get("sleep", b"0")))
        if "note" in row:
            open(row["note"].decode(), "a").write(row.get("mark", b".").decode())
        if "die_once" in row and not os.path.exists(row["die_once"].decode()):
            open(row["die_once"].decode(), "w").close()
            os._exit(1)
        headers = {name.lower(): value for name, value in ctx.get_all_request_header(index).items()}
        body = {"actions": ACTIONS, "version": VERSION, "seen": headers, "action_names": ["x", "y"],
                "control_hz": 10.0, "safety": {"status": "ok"}, "policy": "echo",
                "request_id": headers.get("x-request-id")}
        if "unsafe" in row:
            ctx.set_response_status(503, "", index)
            body = {"error": {"code": "unsafe_action", "field": None, "message": "outside"}}
        ctx.set_response_content_type(index, "application/json")
        out.append(json.dumps(body).encode())
    return out or None
"""
CONFIG = (
    "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 1\njobQueueSize: 16\nresponseTimeout: 30\n"
)
ACTIONS = [[0.5, -0.25]]


def write_version(folder: Path, version: str, actions: list[list[float]] = ACTIONS, load: str = "") -> Path:
    """Write an archive and its digest; it answers with `actions`, and runs `load` when it is loaded."""
    manifest = {
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {"modelName": "vla", "modelVersion": version, "handler": "h.py", "configFile": "c.yaml"},
    }
    example = {"images": {"front": "x.png"}, "command": "x", "seed": 0, "state": [], "actions": ACTIONS}
    path = folder / f"vla-{version}.mar"
    with zipfile.ZipFile(path, "w") as mar:
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        mar.writestr("h.py", f"{load}\nACTIONS = {actions}\nVERSION = {version!r}\n{HANDLER}")
        mar.writestr("c.yaml", CONFIG)
        mar.writestr("x.png", b"picture")
        mar.writestr("policy.json", json.dumps({"example": example}))
    digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    path.with_name(path.name + ".sha256").write_text(digest.stdout)
    return path
