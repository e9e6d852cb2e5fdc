"""The robot's side: observations out, action chunks in. No torch.

from vla_client import ChunkPlayer, Observation, RemotePolicy

policy = RemotePolicy("http://127.0.0.1:8080")
player = ChunkPlayer(policy, replan=4)
while not player.done:
    robot.move(player.action(lambda: Observation(camera.read(), "lift the red block", robot.state())))
"""

from vla_client.ahead import AheadPlayer
from vla_client.chunk import ActionChunk, SafetyReport, Symbol
from vla_client.errors import (
    AccessDenied,
    DeadlineExpired,
    InvalidAnswer,
    Overloaded,
    PolicyError,
    PolicyFailure,
    PolicyUnavailable,
    RequestRefused,
)
from vla_client.history import History
from vla_client.observation import Encoding, Image, Observation, Pictures, Sent
from vla_client.player import ChunkPlayer, Policy
from vla_client.realtime import Counts, RealTime, Run
from vla_client.remote import AsyncPolicy, Body, RemotePolicy

__all__ = [
    "AccessDenied",
    "ActionChunk",
    "AheadPlayer",
    "AsyncPolicy",
    "Body",
    "ChunkPlayer",
    "Counts",
    "DeadlineExpired",
    "Encoding",
    "History",
    "Image",
    "InvalidAnswer",
    "Observation",
    "Overloaded",
    "Pictures",
    "Policy",
    "PolicyError",
    "PolicyFailure",
    "PolicyUnavailable",
    "RealTime",
    "RemotePolicy",
    "RequestRefused",
    "Run",
    "SafetyReport",
    "Sent",
    "Symbol",
]
