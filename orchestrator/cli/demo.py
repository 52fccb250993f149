"""x"""


def demo() -> None:
    "demo"
