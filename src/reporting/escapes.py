"""Texts as Markdown and LaTeX take them."""

from __future__ import annotations

DASH = "—"

GREEK = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "epsilon",
    "ζ": "zeta",
    "η": "eta",
    "θ": "theta",
    "κ": "kappa",
    "λ": "lambda",
    "μ": "mu",
    "ν": "nu",
    "ξ": "xi",
    "π": "pi",
    "ρ": "rho",
    "σ": "sigma",
    "τ": "tau",
    "φ": "phi",
    "χ": "chi",
    "ψ": "psi",
    "ω": "omega",
    "Δ": "Delta",
    "Σ": "Sigma",
    "Ω": "Omega",
}

LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\n": " ",
    "—": "--",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "“": "``",
    "”": "''",
    "’": "'",
    **{letter: f"$\\{name}$" for letter, name in GREEK.items()},
}
"""What LaTeX does not print as it stands (with \\usepackage[T1]{fontenc}, whose letters others are)."""


def escape_markdown(text: str) -> str:
    """Text in which no character means something to Markdown, on one line."""
    for character in "\\|*_`<[":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split("\n"))


def escape_latex(text: str) -> str:
    """Text in which no character means something to LaTeX, on one line."""
    return "".join(LATEX.get(character, character) for character in text)


def latex_comment(text: str) -> str:
    """Text as a comment: a line break in it would end the comment."""
    return "% " + " ".join(text.splitlines())
