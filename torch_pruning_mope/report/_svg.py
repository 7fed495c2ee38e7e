"""A figure as part of a page: SVG without what belongs to a file, in the page's colours."""

import io
import re
from xml.etree import ElementTree as ET

from matplotlib.figure import Figure

from ._theme import PALETTE

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_POINTS_PER_PIXEL = 0.75
_SMALLEST = 0.68
"""How far a figure shrinks on a small screen, before it scrolls."""


def svg_of(figure: Figure) -> str:
    """A figure as the text of an SVG file, the same at every run.

    Args:
        figure: The figure; save it while :func:`drawing`.

    Returns:
        The file's text.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def inline_svg(svg: str, name: str, label: str) -> str:
    """An SVG file's text made part of an HTML page.

    Args:
        svg: The text of a file that :func:`svg_of` wrote.
        name: What its ids begin with, so that no other figure of the page has them.
        label: What it shows, for those who cannot see it.

    Returns:
        An ``svg`` element, in CSS variables for colours, with no reference out of the page.
    """
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(svg)  # noqa: S314
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = _used(root)
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                if value in used:
                    element.set(key, f"{name}-{value}")
                else:
                    del element.attrib[key]
            elif key.endswith("href") and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            else:
                element.set(key, _in_variables(_REFERENCE.sub(rf"url(#{name}-\1)", value)))
    width = float(root.attrib.pop("width").removesuffix("pt")) / _POINTS_PER_PIXEL
    del root.attrib["height"]
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", f"width: {width:.0f}px; min-width: {_SMALLEST * width:.0f}px")
    return ET.tostring(root, encoding="unicode")


def _used(root: ET.Element) -> set[str]:
    found: set[str] = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            found |= {value[1:]} if key.endswith("href") and value.startswith("#") else set(_REFERENCE.findall(value))
    return found


def _in_variables(value: str) -> str:
    for name, colour in PALETTE.items():
        value = value.replace(colour, f"var(--{name})")
    return value
