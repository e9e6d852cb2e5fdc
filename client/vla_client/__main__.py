"""Ask a served policy once and print its chunk: `python -m vla_client photo.jpg "lift the red block"`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from vla_client.chunk import ActionChunk
from vla_client.errors import PolicyFailure
from vla_client.observation import Image, Observation
from vla_client.remote import RemotePolicy


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 when no chunk came back, 2 for a wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        observation = Observation(
            _pictures(options.image), options.command, options.state, options.seed, options.deadline_ms
        )
        cert = (options.cert, options.key) if options.key else options.cert
        with RemotePolicy(
            options.url,
            options.timeout_s,
            options.model,
            api_key=options.api_key,
            ca=options.ca,
            cert=cert,
            headers=dict(options.header),
        ) as policy:
            chunk = policy.infer(observation)
    except (PolicyFailure, OSError, ValueError) as error:
        print(f"python -m vla_client: {error}", file=sys.stderr)
        return 1
    print(table(chunk))
    return 0


def table(chunk: ActionChunk) -> str:
    """Lay a chunk out for people: what was answered, then one action a line."""
    confidence = "none" if chunk.confidence is None else f"{chunk.confidence:.2f}"
    timing = ", ".join(f"{name} {value:g}" for name, value in chunk.timing_ms.items())
    width = max(10, *(len(name) for name in chunk.action_names))
    lines = [
        f"policy      {chunk.policy} {chunk.version}, request {chunk.request_id}",
        f"confidence  {confidence}",
        f"safety      {chunk.safety.status}" + "".join(f"\n            {v}" for v in chunk.safety.violations),
        f"timing [ms] {timing}",
        "",
        "  ".join(["step", "t [s]".rjust(6), *(name.rjust(width) for name in chunk.action_names)]),
    ]
    if chunk.extras:
        lines.insert(-2, f"extras      {json.dumps(chunk.extras)}")
    chosen = [[symbol.name] for symbol in chunk.symbols] or [[]] * len(chunk.actions)
    rows = [symbol.probabilities for symbol in chunk.symbols] or chunk.actions
    for step, row in enumerate(rows):
        numbers = (f"{value:+.4f}".rjust(width) for value in row)
        lines.append("  ".join([f"{step:4d}", f"{step / chunk.control_hz:6.2f}", *numbers, *chosen[step]]))
    return "\n".join(lines)


def _pictures(text: str) -> Image | dict[str, Image]:
    """Read `PATH`, or `CAMERA=PATH,CAMERA=PATH`."""
    if "=" not in text or Path(text).exists():
        return Path(text).read_bytes()
    pairs = (part.partition("=") for part in text.split(","))
    return {camera: Path(path).read_bytes() for camera, _, path in pairs}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vla_client", description=__doc__)
    option = parser.add_argument
    option("image", help="JPEG, PNG or WebP file; for several cameras front=PATH,wrist=PATH")
    option("command", help="what the robot is told, 1 to 512 characters")
    option(
        "--state", nargs="+", type=float, metavar="X", help="proprioceptive state, in the policy's own units"
    )
    option("--seed", type=int, help="seed of a stochastic policy (default: the server's)")
    option("--deadline-ms", type=float, metavar="MS", help="oldest age of the request [ms] (default: none)")
    option(
        "--url", default="http://127.0.0.1:8080", help="root of the inference server (default: %(default)s)"
    )
    option("--model", default="vla", help="name of the served model (default: %(default)s)")
    option("--timeout-s", type=float, default=5.0, metavar="S", help="timeout [s] (default: %(default)s)")
    option(
        "--api-key",
        default=os.environ.get("VLA_API_KEY"),
        metavar="KEY",
        help="sent as X-API-Key (default: VLA_API_KEY of the environment, which other users cannot see)",
    )
    option("--ca", metavar="FILE", help="certificate authorities to trust (default: the system's)")
    option("--cert", metavar="FILE", help="the robot's own certificate, for mutual TLS")
    option("--key", metavar="FILE", help="its private key, where that is not in the same file")
    option("--header", action="append", default=[], type=_header, metavar="NAME:VALUE", help="sent as well")
    return parser


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"must be NAME:VALUE, got {text!r}")
    return name.strip(), value.strip()


def cli() -> None:
    """Run as the installed command."""
    sys.exit(main())


if __name__ == "__main__":
    cli()
