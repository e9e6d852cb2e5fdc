"""The simulated tabletop robot: it makes demonstrations and takes served actions.

commands.py        the goals that the robot can be given, and how people phrase them
simulator.py       the robot and its blocks in MuJoCo
looks.py           light, colours and camera: how a scene is drawn
drawing.py         draws it so
expert.py          the scripted expert
labels.py          what only the simulator knows of a frame
demonstrations.py  a data set on disk
collection.py      makes one: `python -m vla.tabletop`
"""

import os

# Read when mujoco is imported: it renders without a display.
os.environ.setdefault("MUJOCO_GL", "egl")
