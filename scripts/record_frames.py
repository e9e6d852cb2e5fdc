"""Records the simulator's pictures that load tests send: `python scripts/record_frames.py`.

The scripted expert drives 24 episodes, one a goal and scene; a frame is kept from somewhere in each.
"""

from pathlib import Path

from PIL import Image

from vla.tabletop.commands import GOALS, phrase
from vla.tabletop.expert import expert_action
from vla.tabletop.simulator import Tabletop

FOLDER = Path(__file__).resolve().parent.parent / "loadtest" / "corpus"
EPISODES = 24
SIZE = 320


def main() -> None:
    """Write one JPEG an episode, and the commands that they were recorded under."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    env, commands = Tabletop(), []
    for episode in range(EPISODES):
        goal = GOALS[episode % len(GOALS)]
        env.reset(1_000 + episode, goal)
        for _ in range(episode):
            env.step(expert_action(env, goal))
        Image.fromarray(env.render(SIZE)).save(FOLDER / f"frame_{episode:02}.jpg", quality=92, subsampling=0)
        commands.append(phrase(goal, episode))
    (FOLDER / "commands.txt").write_text("\n".join(commands) + "\n")


if __name__ == "__main__":
    main()
