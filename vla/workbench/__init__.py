"""A second scene of the simulated robot: blocks, a tray, a drawer and zones, for tasks of several skills.

commands.py    skills, tasks, and how people phrase them
simulator.py   the scene in MuJoCo, and which steps of a task remain
expert.py      the scripted expert of every skill
"""
