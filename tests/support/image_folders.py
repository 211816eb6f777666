"""Image files for tests of folders."""

from PIL import Image


def put(folder, *names, size=(64, 64)):
    """Grey images, each of a shade of its own, at these paths in the folder."""
    for shade, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 + 20 * shade,) * 3).save(path)
