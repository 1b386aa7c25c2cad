"""The colours of pages and of the figures in them, by colour scheme."""

# Text has a contrast of at least 4.5 on paper and card, and ink also on cell; a line of a series has 3.
SCHEMES = {
    "light": {
        "paper": "#f5f6f8", "card": "#ffffff", "ink": "#1a1c20", "muted": "#59606d", "line": "#d8dce3",
        "accent": "#0b5cb8", "good": "#14713d", "bad": "#b3261e", "cell": "#8dbaf5",
        "series-0": "#0b62c4", "series-1": "#c2410c", "series-2": "#0f7b55", "series-3": "#8b3fc9",
        "series-4": "#946000", "series-5": "#c11c5f", "series-6": "#0e7490", "series-7": "#55565c",
    },
    "dark": {
        "paper": "#14161a", "card": "#1d2026", "ink": "#e8eaee", "muted": "#a4abb8", "line": "#383d47",
        "accent": "#79b4ff", "good": "#6bd09a", "bad": "#ff8f85", "cell": "#2f5f9e",
        "series-0": "#6cb0ff", "series-1": "#ff9a62", "series-2": "#4fd1a1", "series-3": "#c79bff",
        "series-4": "#e3b341", "series-5": "#ff8fb8", "series-6": "#5cc8de", "series-7": "#c4c7cd",
    },
}  # fmt: skip
