"""The words of the toy world: item categories, names, number words, and the writers' filler.

No filler sentence contains an item word or a digit, so the scorer can tell content from filler.
"""

from __future__ import annotations

CATEGORIES: dict[str, tuple[str, ...]] = {
    "fruits": ("apple", "banana", "cherry", "fig", "grape", "kiwi", "lemon", "mango", "peach", "pear", "plum", "melon"),
    "animals": ("bear", "cat", "cow", "dog", "fox", "goat", "horse", "lion", "mouse", "pig", "sheep", "wolf"),
    "colors": ("black", "blue", "brown", "gold", "green", "grey", "pink", "purple", "red", "silver", "white", "yellow"),
    "tools": (
        "axe",
        "brush",
        "chisel",
        "drill",
        "file",
        "hammer",
        "ladder",
        "pliers",
        "rake",
        "saw",
        "shovel",
        "wrench",
    ),
    "drinks": ("beer", "cider", "cocoa", "coffee", "juice", "milk", "rum", "soda", "syrup", "tea", "water", "wine"),
    "vehicles": ("bike", "boat", "bus", "car", "cart", "ferry", "plane", "ship", "taxi", "train", "truck", "van"),
    "clothes": ("belt", "boot", "cap", "coat", "dress", "glove", "hat", "scarf", "shirt", "shoe", "skirt", "sock"),
    "instruments": (
        "banjo",
        "bell",
        "cello",
        "drum",
        "flute",
        "gong",
        "harp",
        "horn",
        "lute",
        "organ",
        "piano",
        "viola",
    ),
}
CATEGORY_OF: dict[str, str] = {word: category for category, words in CATEGORIES.items() for word in words}
WORDS: tuple[str, ...] = tuple(CATEGORY_OF)

COUNTS: dict[str, int] = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
COUNT_WORDS: dict[int, str] = {count: word for word, count in COUNTS.items()}

NAMES: tuple[str, ...] = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn")
UNITS: tuple[str, ...] = ("books", "coins", "cards", "stones", "tickets", "pens")

LEADS: tuple[str, ...] = (
    "Sure, here is the answer:",
    "Here you go:",
    "Of course, this is what you asked for:",
    "Thank you for the question, here it is:",
)
DETAILS: tuple[str, ...] = (
    "I went through it step by step and then checked it again.",
    "This is the kind of question that is good to do with care.",
    "There are many ways to do this, and this way is easy to follow.",
    "I looked at each part of the question in turn.",
    "It is always good to read the question again before the end.",
    "Each part was done in the order in which you asked for it.",
)
CLOSINGS: tuple[str, ...] = (
    "I hope this helps.",
    "Let me know if you need more.",
    "Please ask if there is more to do.",
)
