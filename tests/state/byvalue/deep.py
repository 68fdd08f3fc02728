COUNTS = []


class Tile:
    made = 0

    def __init__(self, name):
        Tile.made += 1
        self.name = name


def count(name):
    COUNTS.append(Tile(name).name)
    return Tile.made
