"""The words of the toy world: item categories, names, number words, and the writers' filler.

No filler sentence contains an item word or a digit, so the scorer can tell content from filler.
"""

from __future__ import annotations

CATEGORIES: dict[str, tuple[str, ...]] = {
    "fruits": ("apple", "cherry", "fig", "grape", "lemon", "mango", "pear", "plum"),
    "animals": ("bear", "cat", "dog", "fox", "horse", "lion", "mouse", "sheep"),
    "colors": ("black", "blue", "brown", "green", "pink", "red", "white", "yellow"),
    "tools": ("axe", "brush", "drill", "hammer", "ladder", "rake", "saw", "wrench"),
    "drinks": ("beer", "cider", "coffee", "juice", "milk", "tea", "water", "wine"),
    "vehicles": ("bike", "boat", "bus", "car", "plane", "ship", "train", "van"),
    "clothes": ("belt", "boot", "coat", "dress", "hat", "scarf", "shirt", "sock"),
    "instruments": ("banjo", "bell", "cello", "drum", "flute", "harp", "organ", "piano"),
}
CATEGORY_OF: dict[str, str] = {word: category for category, words in CATEGORIES.items() for word in words}
WORDS: tuple[str, ...] = tuple(CATEGORY_OF)

COUNTS: dict[str, int] = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
COUNT_WORDS: dict[int, str] = {count: word for word, count in COUNTS.items()}

NAMES: tuple[str, ...] = ("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn")
UNITS: tuple[str, ...] = ("books", "coins", "cards", "stones", "tickets", "pens")

LEADS: tuple[str, ...] = (
    "Sure, here it is:",
    "Here you go:",
    "Of course:",
    "Thank you for asking:",
    "This is what I found:",
    "Let me see:",
)
DETAILS: tuple[str, ...] = (
    "I went through it step by step.",
    "There are many ways to do this.",
    "I looked at each part in turn.",
    "It is good to check this again.",
    "This is easy to follow.",
    "You asked for it in this form.",
    "Some of it was not so easy.",
    "Now you can see how it is done.",
)
CLOSINGS: tuple[str, ...] = (
    "I hope this helps.",
    "Let me know if you need more.",
    "Please ask again at any time.",
    "That is all for now.",
)
