"""What counts as a climb; the traced run itself is a benchmark."""

from pathlib import Path

from crossings import climbs, rooms

ORDER = ("text", "data", "training", "runs")


def test_a_climb_is_a_step_to_a_room_further_from_the_ground():
    files = ["runs/train.py", "data/formats.py", "data/rows.py", "runs/train.py", "training/step.py", "runs/train.py"]
    assert climbs(files, ORDER) == 2


def test_a_file_on_the_ground_floor_is_a_room_of_its_own():
    assert climbs(["text.py", "data/rows.py"], ORDER) == 1


def test_the_rooms_are_read_from_the_layout_test():
    layout = Path(__file__).parents[1] / "test_layout.py"
    order = rooms(layout.read_text(encoding="utf-8"))
    assert order.index("data") < order.index("training") < order.index("runs") < order.index("cli")
