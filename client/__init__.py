"""The robot's side: observations out, action chunks in. No torch.

from client import ChunkPlayer, Observation, RemotePolicy

policy = RemotePolicy("http://127.0.0.1:8080")
player = ChunkPlayer(policy, replan=4)
while True:
    robot.move(player.action(lambda: Observation(camera.read(), "lift the red block", robot.state())))
"""

from client.ahead import AheadPlayer
from client.chunk import ActionChunk, SafetyReport, Symbol
from client.errors import InvalidAnswer, PolicyError, PolicyFailure, PolicyUnavailable
from client.observation import Encoding, Image, Observation
from client.player import ChunkPlayer, Policy
from client.realtime import Counts, RealTime, Run
from client.remote import Body, RemotePolicy

__all__ = [
    "ActionChunk",
    "AheadPlayer",
    "Body",
    "ChunkPlayer",
    "Counts",
    "Encoding",
    "Image",
    "InvalidAnswer",
    "Observation",
    "Policy",
    "PolicyError",
    "PolicyFailure",
    "PolicyUnavailable",
    "RealTime",
    "RemotePolicy",
    "Run",
    "SafetyReport",
    "Symbol",
]
